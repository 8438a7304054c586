"""What callers read of a body that is no JSON: Python's words in English, ours in Japanese, each with the place."""

from json import JSONDecodeError

from apiproxy.dataplane.errors import Language

# By the beginning of what Python's json says.
JAPANESE = (
    ("Expecting property name", "に、二重引用符で囲んだ名前がありません"),
    ("Expecting ':'", "に「:」がありません"),
    ("Expecting ','", "に「,」がありません"),
    ("Expecting value", "に値がありません"),
    ("Illegal trailing comma", "に余分な「,」があります"),
    ("Extra data", "に余分な文字があります"),
    ("Invalid control character", "に制御文字があります"),
    ("Invalid \\", "のエスケープ (\\) が正しくありません"),
    ("Unterminated string", "からの文字列が閉じられていません"),
)
OTHERWISE = "に読み取れない文字があります"


def describe_json_fault(error: ValueError | RecursionError) -> dict[Language, str]:
    """Return what is wrong with the JSON, and where, in each language."""
    if isinstance(error, JSONDecodeError):
        words = next((words for beginning, words in JAPANESE if error.msg.startswith(beginning)), OTHERWISE)
        return {"en": str(error), "ja": f"{error.lineno} 行 {error.colno} 文字目{words}"}
    if isinstance(error, RecursionError):
        return {"en": "nested too deeply", "ja": "リストやオブジェクトの入れ子が深すぎます"}
    # Python's own sentence names a setting of the interpreter.
    return {"en": "a number has too many digits", "ja": "桁数の多すぎる数値があります"}
