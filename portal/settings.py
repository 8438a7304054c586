"""Every setting, from the environment. By default: SQLite, one process, local accounts, state under `var/`.

`DATABASE_URL`, `REDIS_URL` and `LDAP_*` enable the rest. `deploy/SETTINGS.md` lists them for operators. A value that
cannot be read raises environs.EnvError, which names its variable. `NAME_FILE` may hold the path of a file with the
value of `NAME`, for secrets mounted by an orchestrator.
"""

import logging
import socket
import sys
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import environs
from csp.constants import NONE, SELF
from django.utils.translation import gettext_lazy as _

from modelregistry import database
from modelregistry.engines.registry import command_variables
from modelregistry.version import VERSION
from portal import environment, frontend
from portal.accounts import ldap
from portal.notifications import mail_settings

BASE_DIR = Path(__file__).resolve().parent.parent
env = environs.FileAwareEnv(strip_whitespace=True)  # editors end a file with a line feed

# State of this installation (database, secrets, spool, logs, run directory) and what is shared by all of one user's.
VAR = env.path("MADOGUCHI_VAR", BASE_DIR / "var").absolute()
CACHE = env.path("MADOGUCHI_CACHE", Path.home() / ".cache" / "madoguchi")
MODELS = env.path("MADOGUCHI_MODELS", CACHE / "models")
SPOOL = VAR / "spool"
RUN = VAR / "run"
PORTAL_SOCKET = RUN / "portal.sock"  # on which gateways hand pages to the portal's processes

DEBUG = env.bool("DEBUG", False)
# Importing settings writes nothing: a missing secret is generated when it is first used.
SECRET_KEY = env.str("SECRET_KEY", "") or environment.load_secret(VAR / "secret-key")
# API keys have a secret of their own, so that a changed SECRET_KEY ends sessions but invalidates no key.
API_KEY_SECRET = env.str("API_KEY_SECRET", "") or environment.load_secret(VAR / "api-key-secret")
# Those that these replace, while both are accepted.
SECRET_KEY_FALLBACKS: list[str] = env.list("SECRET_KEY_FALLBACKS", [])
API_KEY_SECRET_FALLBACKS: list[str] = env.list("API_KEY_SECRET_FALLBACKS", [])
# The address that people type; printed in the ready-to-paste settings. Empty: taken from the request.
PUBLIC_URL = env.str("PUBLIC_URL", "").rstrip("/")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]", socket.gethostname()])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", [PUBLIC_URL] if PUBLIC_URL else [])
HOST_NAME = env.str("MADOGUCHI_HOST", socket.gethostname())

RUNSERVER = sys.argv[1:2] == ["runserver"]
INSTALLED_APPS = [
    # Before staticfiles: gives `runserver` its ASGI server. All else would import 30 MB for it, in 0.4 of 1.2 s.
    # Only development installs it; without it `runserver` serves pages only (apiproxy.bridge.checks).
    *(["daphne"] if RUNSERVER and find_spec("daphne") else []),
    "portal.site.admin_apps.Administration",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "axes",
    "csp",
    "rest_framework",
    "drf_spectacular",
    "portal.web",
    "portal.audit",
    "portal.accounts",
    "portal.keys",
    "portal.prices",
    "portal.usage",
    "portal.adoption",
    "portal.canary",
    "portal.quotas",
    "portal.guide",
    "portal.news",
    "portal.status",
    "portal.backups",
    "portal.use_cases",
    "portal.feedback",
    "portal.lessons",
    "portal.notifications",
    "portal.operations",
    "portal.catalogue",
    "portal.site",
    "portal.demo",
    "modelregistry",
    "apiproxy.bridge",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "portal.web.static_files.Files",
    "csp.middleware.CSPMiddleware",
    "portal.web.request_checks.middleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "portal.audit.tracking.middleware",
]

ROOT_URLCONF = "portal.site.root_urls"
ASGI_APPLICATION = "apiproxy.server.single_process.application"  # of `runserver`

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": env.dj_db_url("DATABASE_URL", f"sqlite:///{VAR / 'madoguchi.sqlite3'}", conn_max_age=60)}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Portal, gateway and supervisor write one file: WAL lets readers go on, IMMEDIATE makes a writer
    # queue (up to the time-out) instead of failing half-way when it upgrades a read.
    DATABASES["default"]["ENGINE"] = "portal.sqlite"
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
    # Tests use a file as well: in-memory SQLite cannot be shared with the processes that they start.
    DATABASES["default"]["TEST"] = {"NAME": str(VAR / "test.sqlite3")}
elif DATABASES["default"]["ENGINE"].endswith("postgresql"):
    # `options` in DATABASE_URL replaces ours, for poolers that pass none on. Page processes add a pool: portal.asgi.
    DATABASES["default"]["OPTIONS"] = {
        "options": database.TUNING,
        "connect_timeout": database.CONNECT_SECONDS,
        **DATABASES["default"].get("OPTIONS", {}),
    }
# Connections of one process that makes pages, and the seconds that a statement of theirs may take (PostgreSQL).
DATABASE_POOL = env.int("DATABASE_POOL", 10, validate=environs.validate.Range(min=2))
DATABASE_TIMEOUT = env.float("DATABASE_TIMEOUT", 15.0, validate=environs.validate.Range(min=1.0, max=3600.0))
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- People -----------------------------------------------------------------------------------------------------
AUTH_USER_MODEL = "accounts.User"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "arrive"
LOGOUT_REDIRECT_URL = "login"
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "portal.accounts.backends.LocalBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator")
]
# Throttled by name and address together: a stranger cannot lock a person out from elsewhere.
AXES_FAILURE_LIMIT = env.int("SIGN_IN_ATTEMPTS", 5, validate=environs.validate.Range(min=1))
AXES_COOLOFF_TIME = env.timedelta("SIGN_IN_LOCK", timedelta(minutes=15))
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_USERNAME_CALLABLE = "portal.accounts.throttle.counted_name"
AXES_CLIENT_IP_CALLABLE = "portal.web.client_address.client_address"
# Number of our own reverse proxies in front; 0: X-Forwarded-For is not trusted.
TRUSTED_PROXIES = env.int("TRUSTED_PROXIES", 0, validate=environs.validate.Range(min=0))
AXES_RESET_ON_SUCCESS = True
# Trying while locked does not lengthen the lock, so that the waiting time on the page is true.
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_VERBOSE = False
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False  # lists in English, two of them always empty; `manage.py axes_reset_username` unlocks
# Not needed: the sign-in page itself says that it is locked. (8.3.1's passes wrong arguments under ASGI.)
SILENCED_SYSTEM_CHECKS = ["axes.W002"]
# The proxy that terminates TLS redirects (deploy/nginx.conf); HSTS for other hosts of the domain is not ours to set.
SILENCED_SYSTEM_CHECKS += ["security.W005", "security.W008", "security.W021"]
DIRECTORY = ldap.read_settings(env)
if DIRECTORY:
    AUTHENTICATION_BACKENDS.insert(1, "portal.accounts.ldap.Backend")
    globals().update(ldap.auth_settings(DIRECTORY))

# --- Mail -------------------------------------------------------------------------------------------------------
# Without EMAIL_URL notices are in the portal alone.
SENDS_MAIL = bool(mail := mail_settings.read_mail_settings(env))
globals().update(mail)
DEFAULT_FROM_EMAIL = env.str("MAIL_FROM", f"Madoguchi <madoguchi@{socket.gethostname()}>")

# --- Pages ------------------------------------------------------------------------------------------------------
LANGUAGES = [("ja", "日本語"), ("en", "English")]
LANGUAGE_CODE = "en"  # the language of the source texts; a browser that asks for Japanese gets Japanese
LANGUAGE_COOKIE_NAME = "language"
LANGUAGE_COOKIE_AGE = 365 * 24 * 3600
LANGUAGE_COOKIE_SAMESITE = "Lax"
LOCALE_PATHS = [BASE_DIR / "portal" / "locale"]
FORMAT_MODULE_PATH = "portal.web.formats"
PORTAL_WORKERS = env.int("PORTAL_WORKERS", 1, validate=environs.validate.Range(min=1))
USE_TZ = True
TIME_ZONE = env.str("TIME_ZONE", "Asia/Tokyo")
STATIC_URL = "/static/"
# A release brings its static files; a checkout collects them (deploy/setup.py).
RELEASED_STATIC = BASE_DIR / "static"
RELEASED = RELEASED_STATIC.is_dir()
STATICFILES_DIRS = [] if RELEASED else [BASE_DIR / "portal" / "static", frontend.served_directory(CACHE)]
STATICFILES_FINDERS = [
    "django.contrib.staticfiles.finders.FileSystemFinder",
    "portal.web.rest.docs_files.Apps",
    "portal.web.rest.docs_files.Finder",
]
STATIC_ROOT = RELEASED_STATIC if RELEASED else VAR / "static"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = DEBUG
SITE_NAME = _("Madoguchi")

# --- Security ---------------------------------------------------------------------------------------------------
HTTPS = env.bool("HTTPS", PUBLIC_URL.startswith("https://"))
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = LANGUAGE_COOKIE_SECURE = HTTPS
# How long browsers that came by HTTPS once insist on it; 0: no such header.
SECURE_HSTS_SECONDS = env.int("HSTS_SECONDS", 365 * 24 * 3600 if HTTPS else 0, validate=environs.validate.Range(min=0))
SESSION_COOKIE_AGE = 12 * 3600  # a working day
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "img-src": [SELF, "data:"],
        "connect-src": [SELF],
        "object-src": [NONE],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}

# --- Keys -------------------------------------------------------------------------------------------------------
# How many may be usable at a time, and be created within a day: a loop that creates keys must not flood the lists.
AT_LEAST_ONE = environs.validate.Range(min=1)
KEYS_PER_PERSON = env.int("KEYS_PER_PERSON", 100, validate=AT_LEAST_ONE)
SERVICE_KEYS_PER_TENANT = env.int("SERVICE_KEYS_PER_TENANT", 500, validate=AT_LEAST_ONE)

# --- API --------------------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "portal.keys.management_key_authentication.WithManagementKey",
        "rest_framework.authentication.SessionAuthentication",
    ],
    # Views that are not for operators only set their own.
    "DEFAULT_PERMISSION_CLASSES": ["portal.accounts.api_permissions.Operators"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["portal.web.rest.parsing.JsonParser"],
    "DEFAULT_SCHEMA_CLASS": "portal.web.rest.openapi.Operation",
    "EXCEPTION_HANDLER": "portal.web.rest.problems.handle",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Madoguchi",
    "DESCRIPTION": _("What the pages of the portal do, for programs. It shows what you may use."),
    "VERSION": VERSION,
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PUBLIC": False,  # each person gets a description of what they may use
    "COMPONENT_SPLIT_REQUEST": True,  # or requests would have to contain fields that only responses have
    "ENUM_NAME_OVERRIDES": {
        "ModelState": "modelregistry.overview.ModelState",
        "ReplicaState": "modelregistry.models.Replica.State",
        "KeyState": "portal.keys.queries.KeyState",
        "KeyClass": "portal.keys.models.ApiKey.Class",
        "ChosenKeyClass": "portal.keys.models.ApiKey.CHOOSABLE",
        "Liveness": "portal.keys.model_access.Liveness",
        "QuotaUnit": "portal.quotas.units.unit_choices",
        "QuotaRequestState": "portal.quotas.models.QuotaRequest.State",
        "QuotaCaution": "portal.quotas.cautions.CODES",
        "PriceCaution": "portal.prices.cautions.CODES",
        "PriceKind": "portal.prices.models.TokenPrice.Kind",
        "UseCaseTask": "portal.use_cases.models.TaskKind",
        "UseCaseFieldKind": "portal.use_cases.variables.VariableKind",
        "UseCaseState": "portal.use_cases.models.UseCaseVersion.State",
        "UseCaseDepartment": "portal.use_cases.models.TargetGroup",
        "UseCaseLanguage": "portal.use_cases.models.Language",
    },
}

# --- Gateway ----------------------------------------------------------------------------------------------------
# Several gateway processes count limits in Redis; without it a single process counts in its memory.
REDIS_URL = env.str("REDIS_URL", "")
# An OpenTelemetry collector that takes traces of calls over HTTP. Empty: none are made.
OTEL_EXPORTER_OTLP_ENDPOINT = env.str("OTEL_EXPORTER_OTLP_ENDPOINT", "", validate=environment.check_collector)
REDIS_PREFIX = env.str("REDIS_PREFIX", "madoguchi")
GATEWAY_WORKERS = env.int("GATEWAY_WORKERS", 1, validate=environs.validate.Range(min=1))
GATEWAY_MAX_BODY = env.int("GATEWAY_MAX_BODY_MB", 32) * 1024 * 1024
GATEWAY_DEFAULT_MAX_TOKENS = env.int("GATEWAY_DEFAULT_MAX_TOKENS", 8192, validate=environs.validate.Range(min=1))
# Domains from which engines may fetch what a message refers to (images, recordings); none by default.
MEDIA_DOMAINS: list[str] = env.list("MEDIA_DOMAINS", [], subcast=lambda domain: str(domain).strip().lower())
# Whether tenants share the prefix cache: faster, but response times show whether a guessed prompt is cached.
SHARED_PREFIX_CACHE = env.bool("SHARED_PREFIX_CACHE", False)
GATEWAY_MAX_UPLOAD = env.int("GATEWAY_MAX_UPLOAD_MB", 200, validate=environs.validate.Range(min=1)) * 1024 * 1024
# Memory that clients may occupy in one gateway process: all of them together, and one key.
POSITIVE = environs.validate.Range(min=1)
GATEWAY_MEMORY = env.int("GATEWAY_MEMORY_MB", 384, validate=POSITIVE) * 1024 * 1024
GATEWAY_MEMORY_PER_KEY = env.int("GATEWAY_MEMORY_PER_KEY_MB", 128, validate=POSITIVE) * 1024 * 1024
# Pages of other origins that may call /v1 from a browser.
GATEWAY_CORS_ORIGINS: list[str] = env.list("GATEWAY_CORS_ORIGINS", [], validate=environment.check_origins)
# Time-outs of models that have none of their own, in seconds.
TIME_LIMIT = environs.validate.Range(min=0.1, max=86400.0)
GATEWAY_CONNECT_TIMEOUT = env.float("GATEWAY_CONNECT_TIMEOUT", 5.0, validate=TIME_LIMIT)
GATEWAY_FIRST_BYTE_TIMEOUT = env.float("GATEWAY_FIRST_BYTE_TIMEOUT", 300.0, validate=TIME_LIMIT)
GATEWAY_IDLE_TIMEOUT = env.float("GATEWAY_IDLE_TIMEOUT", 900.0, validate=TIME_LIMIT)
GATEWAY_TOTAL_TIMEOUT = env.float("GATEWAY_TOTAL_TIMEOUT", 3600.0, validate=TIME_LIMIT)
# Seconds that open answers may go on in processes whose place others have taken; a bit longer than any call lasts.
GATEWAY_DRAIN = env.float("GATEWAY_DRAIN", GATEWAY_TOTAL_TIMEOUT + 60.0, validate=environs.validate.Range(min=1.0))

# --- Backups ----------------------------------------------------------------------------------------------------
# Where `manage.py backup` keeps them, and how old the newest may be before operators are notified. None: not watched.
BACKUP_DIR = env.str("BACKUP_DIR", "")
BACKUP_MAX_AGE = env.timedelta(
    "BACKUP_MAX_AGE",
    timedelta(hours=26) if BACKUP_DIR else None,
    validate=environs.validate.Range(min=timedelta(hours=2)),
)

# --- How long data is kept --------------------------------------------------------------------------------------
# Days. None: until `manage.py pruneusage --older-than` is run; for good.
USAGE_KEPT_DAYS = env.int("USAGE_KEPT_DAYS", None, validate=environs.validate.Range(40, 36500))  # a month, and more
AUDIT_KEPT_DAYS = env.int("AUDIT_KEPT_DAYS", None, validate=environs.validate.Range(90, 36500))
REFUSALS_KEPT_DAYS = env.int("REFUSALS_KEPT_DAYS", 7, validate=environs.validate.Range(1, 400))
HISTORY_KEPT_DAYS = env.int("HISTORY_KEPT_DAYS", 31, validate=environs.validate.Range(2, 400))
NOTICES_KEPT_DAYS = env.int("NOTICES_KEPT_DAYS", 400, validate=environs.validate.Range(30, 36500))

# --- Canary -----------------------------------------------------------------------------------------------------
# The hour (of TIME_ZONE) from which on chat models are asked the fixed prompts each night. None: never by itself, nor
# after starts, upgrades and changed files.
CANARY_HOUR = environment.read_hour(env.str("MADOGUCHI_CANARY_HOUR", "3", validate=environment.check_hour))
# Where this host reaches a gateway. Empty: on itself, else at PUBLIC_URL.
GATEWAY_URL = env.str("GATEWAY_URL", "").rstrip("/")

# --- Engines ----------------------------------------------------------------------------------------------------
# How this host starts each kind of engine (VLLM_COMMAND, LLAMA_SERVER_COMMAND, XLLAMACPP_PYTHON, LLAMA_CPP_PYTHON);
# empty: what `modelregistry.engines.programs` finds in the cache or on PATH.
ENGINE_COMMANDS = {launcher: env.str(variable, "") for launcher, variable in command_variables().items()}
ENGINE_PORTS = env.str("ENGINE_PORTS", "18100-18999")
ENGINE_START_TIMEOUT = env.float("ENGINE_START_TIMEOUT", 1800.0)
ENGINE_STOP_GRACE = env.float("ENGINE_STOP_GRACE", 10.0)
# Seconds that a host of a cluster keeps its engines while no controller reaches it.
HOST_LEASE = env.float("HOST_LEASE", 60.0, validate=environs.validate.Range(30, 3600))
# Models with fewer replicas than they may have at most get one more when calls would wait for so long, for so long; and
# have one fewer when none has waited for so long (seconds).
SCALE_TIME = environs.validate.Range(1, 86400)
SCALE_UP_WAIT = env.float("SCALE_UP_WAIT", 15.0, validate=SCALE_TIME)
SCALE_UP_AFTER = env.float("SCALE_UP_AFTER", 60.0, validate=SCALE_TIME)
SCALE_DOWN_AFTER = env.float("SCALE_DOWN_AFTER", 900.0, validate=SCALE_TIME)
# Whether the controller copies a model's files to another host by itself, where it fits on none that has them.
COPY_MODELS = env.bool("COPY_MODELS", False)

LOG_FORMAT = env.str("LOG_FORMAT", "text", validate=environs.validate.OneOf(["text", "json"]))
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"text": {"()": "portal.logs.Text"}, "json": {"()": "portal.logs.JsonFormatter"}},
    "handlers": {"stderr": {"class": "portal.logs.Stderr", "formatter": LOG_FORMAT}},
    "root": {"handlers": ["stderr"], "level": env.log_level("LOG_LEVEL", logging.INFO)},
    "loggers": {
        "django.request": {"level": "ERROR"},
        "axes": {"level": "WARNING"},
        "django_auth_ldap": {"level": "ERROR"},
        "httpx2": {"level": "WARNING"},
        "python_multipart": {"level": "CRITICAL"},  # quotes what it cannot parse, which is a recording of a client
        "madoguchi.calls": {"level": "NOTSET" if env.bool("LOG_CALLS", True) else "WARNING"},
        # uvicorn has attached its own handler by now
        "uvicorn": {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
        "uvicorn.access": {"level": "WARNING", "handlers": [], "propagate": True},
    },
}
