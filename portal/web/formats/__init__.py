"""How dates and times are written where a template or Django's admin gives no format: settings.FORMAT_MODULE_PATH."""
