"""Line breaks in texts that people type: one character each, as the browser counts them in a field of a form.

Browsers send CRLF for each, so that a text of the greatest length would be refused here. Forms are changed in
`request_checks`, fields of the API in `rest.strict_fields`, both before they are validated.
"""


def unify_line_breaks(text: str) -> str:
    """Return the text with LF for CRLF and CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
