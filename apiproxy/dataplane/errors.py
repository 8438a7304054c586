"""Refusals of the gateway and the OpenAI error object that each becomes.

Refusal
├── InvalidKey              401  invalid_api_key
├── NetworkNotAllowed       403  network_not_allowed
├── UnknownPath             404  unknown_url
├── WrongMethod             405  method_not_allowed
├── UnknownModel            404  model_not_found
├── UnknownRequest          404  request_not_found          (of feedback: not the caller's, or none)
├── BadRequest              400  invalid_json, invalid_value, model_not_supported, path_not_supported
├── BadRequest              400  suspected_poison, answer_too_large, request_too_old
├── ContextExceeded         400  context_length_exceeded
├── BodyTooLarge            413  request_too_large
├── BodyTooSlow             408  request_timeout
├── UnknownCoding           415  unsupported_content_encoding
├── Malformed               400  invalid_request            (no HTTP, or none that can be read in one way only)
├── UrlTooLong              414  url_too_long
├── HeadTooLarge            431  headers_too_large
├── UnknownTransferCoding   501  transfer_encoding
├── OverRate                429  rate_limit_exceeded        (a minute's limit, too many at the same time, or what is
│                                                            left is held by requests that are running)
├── OverMemory                                              (what callers make us hold, see `memory_budget`)
│   ├── TooManyAtOnce       429  rate_limit_exceeded        (of one key)
│   └── ServerBusy          503  server_busy                (of all)
├── OverQuota               429  insufficient_quota         (a day's or month's limit)
├── BatchBusy               429  batch_held_back            (a batch key's call, while others need the engines)
├── ModelBusy               503  model_busy                 (too many calls wait for the model, or for too long)
├── ModelUnavailable        503  model_unavailable, model_loading, model_without_room, too_many_loading
├── MeteringUnavailable     503  metering_unavailable
├── FeedbackUnavailable     503  feedback_unavailable       (the database is away)
├── Internal                500  internal_error
├── EngineFailed            502  engine_error
├── EngineBusy              429  engine_busy                (or 503: as the engine said)
└── EngineTimeout           504  engine_timeout

`message` is in the key owner's language; `code` and `type` are for programs and never change.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

Language = Literal["en", "ja"]

MESSAGES: dict[str, dict[Language, str]] = {
    "missing_api_key": {
        "en": 'No API key was given. Send it as "Authorization: Bearer mdg_…" or "x-api-key: mdg_…".',
        "ja": "API キーがありません。「Authorization: Bearer mdg_…」または「x-api-key: mdg_…」の形で送ってください。",
    },
    "invalid_api_key": {
        "en": "This API key is not valid: it may be mistyped, revoked or expired. Your keys are listed in the portal.",
        "ja": "この API キーは使えません。入力の誤り、失効、期限切れのいずれかです。お持ちのキーはポータルで確認できます。",
    },
    "network_not_allowed": {
        "en": "This API key may not be used from {address}. The portal shows the networks from which it may.",
        "ja": "この API キーは {address} からは使えません。使えるネットワークはポータルで確認できます。",
    },
    "unknown_url": {
        "en": "{path} is not served here.",
        "ja": "{path} はここでは提供していません。",
    },
    "wrong_base_url": {
        "en": "{path} is not served here. Set the base URL of your client so that it asks for {right}.",
        "ja": "{path} はここでは提供していません。クライアントのベース URL を、{right} が呼び出されるように設定してください。",
    },
    "method_not_allowed": {
        "en": "{path} does not take {method}.",
        "ja": "{path} は {method} に対応していません。",
    },
    "model_not_found": {
        "en": 'The model "{model}" does not exist or this key may not use it. GET /v1/models lists those that it may.',
        "ja": "モデル「{model}」は存在しないか、このキーでは使えません。使えるモデルは GET /v1/models で確認できます。",
    },
    "model_retired": {
        "en": 'The model "{model}" was retired on {day}. GET /v1/models lists those that this key may use.',
        "ja": "モデル「{model}」は {day} に提供を終了しました。使えるモデルは GET /v1/models で確認できます。",
    },
    "model_not_supported": {
        "en": 'The model "{model}" cannot be used with {path}: it is for {task}.',
        "ja": "モデル「{model}」は {path} では使えません (用途: {task})。",
    },
    "path_not_supported": {
        "en": 'The engine that serves the model "{model}" does not offer {path}.',
        "ja": "モデル「{model}」を動かしているエンジンは {path} に対応していません。",
    },
    "invalid_json": {
        "en": "The request body is not valid JSON: {detail}.",
        "ja": "リクエスト本文が正しい JSON ではありません: {detail}。",
    },
    "not_utf8": {
        "en": "The request body is not UTF-8 (it looks like: {encoding}). JSON is always sent as UTF-8.",
        "ja": "リクエスト本文の文字コードが UTF-8 ではありません (推定: {encoding})。JSON は UTF-8 で送ってください。",
    },
    "too_many_values": {
        "en": "The request body is made of too many small values: {most} lists, objects or names are the most.",
        "ja": "リクエスト本文に含まれる値が多すぎます。配列・オブジェクト・名前は合計 {most} 個までです。",
    },
    "not_an_object": {
        "en": "The request body must be a JSON object.",
        "ja": "リクエスト本文は JSON オブジェクトにしてください。",
    },
    "missing_model": {
        "en": 'The request needs "model", a text that names a model.',
        "ja": "リクエストには「model」(モデル名の文字列) が必要です。",
    },
    "invalid_value": {
        "en": '"{param}" has a value that cannot be used: {detail}.',
        "ja": "「{param}」の値が正しくありません: {detail}。",
    },
    "out_of_bounds": {
        "en": '"{param}" must be a whole number from {least} to {most}, not {sent}.',
        "ja": "「{param}」には {least} から {most} までの整数を指定してください (送られた値: {sent})。",
    },
    "not_boolean": {
        "en": '"{param}" must be true or false, not {sent}.',
        "ja": "「{param}」には true か false を指定してください (送られた値: {sent})。",
    },
    "too_long": {
        "en": '"{param}" may have at most {most} characters; {sent} were sent.',
        "ja": "「{param}」は {most} 文字までです (送られた長さ: {sent} 文字)。",
    },
    "too_many": {
        "en": '"{param}" may have at most {most} members; {sent} were sent.',
        "ja": "「{param}」の要素は {most} 個までです (送られた数: {sent} 個)。",
    },
    "too_nested": {
        "en": '"{param}" may have brackets in each other at most {most} deep; {sent} were sent.',
        "ja": "「{param}」のかっこの入れ子は {most} 段までです (送られた深さ: {sent} 段)。",
    },
    "other_case": {
        "en": 'The member "{param}" differs from "{known}" only in its letters\' case. Engines may take one for the other.',
        "ja": "「{param}」は「{known}」と大文字・小文字だけが違います。エンジンによっては同じものとして扱われるため、受け付けません。",
    },
    "media_data": {
        "en": '"{param}" must be a data URL (data:…;base64,…), not {sent}: nothing is fetched from elsewhere.',
        "ja": "「{param}」には data URL (data:…;base64,…) を指定してください。ほかの場所からは取得しません (送られた値: {sent})。",
    },
    "media_domain": {
        "en": '"{param}" must be a data URL (data:…;base64,…) or an http(s) address on {allowed}, not {sent}.',
        "ja": "「{param}」には data URL (data:…;base64,…) か {allowed} の http(s) アドレスを指定してください (送られた値: {sent})。",
    },
    "too_many_answers": {
        "en": "One request may ask for at most {most} answers in all; {sent} were asked for.",
        "ja": "1 回のリクエストで求められる回答は合計 {most} 件までです (求められた数: {sent} 件)。",
    },
    "too_deep": {
        "en": "The request body has lists and objects within each other more than {most} levels deep.",
        "ja": "リクエスト本文の入れ子が {most} 段を超えています。",
    },
    "not_multipart": {
        "en": "This path takes a form with a file: Content-Type multipart/form-data with a boundary.",
        "ja": "このパスにはファイル付きのフォーム (boundary のある Content-Type multipart/form-data) を送ってください。",
    },
    "invalid_form": {
        "en": "The form (multipart/form-data) cannot be read: {detail}.",
        "ja": "フォーム (multipart/form-data) を読み取れません: {detail}。",
    },
    "model_too_late": {
        "en": 'Send the field "model" before the file: until it is known, only small files can be taken.',
        "ja": "「model」はファイルより前に送ってください。モデルが分かるまでは、小さいファイルしか受け取れません。",
    },
    "engine_refused": {
        "en": "The model refused this request: {detail}",
        "ja": "モデルがこのリクエストを受け付けませんでした: {detail}",
    },
    # The first sentence is one that programs (LiteLLM, aider, coding agents) look for, so it is the same in all languages.
    "context_length_exceeded": {
        "en": "The request exceeds this model's maximum context length. The model says: {detail}",
        "ja": "The request exceeds this model's maximum context length. "
        "(モデルのコンテキスト長を超えています。モデルの説明: {detail})",
    },
    "prompt_too_long": {
        "en": "This model's maximum context length is {limit} tokens. However, your messages resulted in {prompt} tokens. "
        "Please reduce the length of the messages.",
        "ja": "This model's maximum context length is {limit} tokens. However, your messages resulted in {prompt} tokens. "
        "(プロンプトがモデルのコンテキスト長を超えています。会話を短くするか、コンテキスト長の大きいモデルを使ってください。)",
    },
    "input_too_long": {
        "en": "This model's maximum context length is {limit} tokens. However, your input has {prompt} tokens. Please divide "
        "the text into shorter parts.",
        "ja": "This model's maximum context length is {limit} tokens. "
        "(入力が {prompt} トークンあり、モデルのコンテキスト長を超えています。文章を短く分割してください。)",
    },
    "answer_too_long": {
        "en": "This model's maximum context length is {limit} tokens. However, you requested {total} tokens ({prompt} in the "
        "messages, {answer} in the completion). Please reduce the length of the messages or completion: the prompt fits, "
        '"max_tokens" may be at most {limit} less its tokens.',
        "ja": "This model's maximum context length is {limit} tokens. However, you requested {total} tokens ({prompt} in the "
        "messages, {answer} in the completion). (プロンプトは収まりますが、「max_tokens」が大きすぎます。"
        "プロンプトと合わせて {limit} 以下にしてください。)",
    },
    "answer_over_context": {
        "en": "This model's maximum context length is {limit} tokens. However, you requested {answer} tokens in the "
        'completion. Please reduce "max_tokens".',
        "ja": "This model's maximum context length is {limit} tokens. However, you requested {answer} tokens in the "
        "completion. (「max_tokens」が大きすぎます。)",
    },
    "anthropic_prompt_too_long": {
        "en": "prompt is too long: {prompt} tokens > {limit} maximum",
        "ja": "prompt is too long: {prompt} tokens > {limit} maximum (プロンプトがモデルのコンテキスト長を超えています)",
    },
    "anthropic_answer_too_long": {
        "en": "input length and `max_tokens` exceed context limit: {prompt} + {answer} > {limit}, decrease input length or "
        "`max_tokens` and try again",
        "ja": "input length and `max_tokens` exceed context limit: {prompt} + {answer} > {limit}, decrease input length or "
        "`max_tokens` and try again (「max_tokens」が大きすぎます)",
    },
    "request_too_large": {
        "en": "The request body is larger than the {limit} MB that this server takes.",
        "ja": "リクエスト本文がこのサーバーの上限 {limit} MB を超えています。",
    },
    "unknown_coding": {
        "en": 'The request body is encoded as "{coding}" (Content-Encoding), which this server does not decode. Send it as it is, or as gzip or deflate.',
        "ja": "リクエスト本文の Content-Encoding「{coding}」には対応していません。そのまま、または gzip か deflate で送ってください。",
    },
    "broken_coding": {
        "en": "The request body cannot be decompressed: it is not whole, or not {coding} as its Content-Encoding says.",
        "ja": "リクエスト本文を展開できません。途中で切れているか、Content-Encoding の {coding} 形式ではありません。",
    },
    "request_timeout": {
        "en": "Nothing more of the request came for {seconds} s.",
        "ja": "リクエストの続きが {seconds} 秒間届きませんでした。",
    },
    "invalid_request": {
        "en": "This is not a valid HTTP request.",
        "ja": "正しい HTTP リクエストではありません。",
    },
    "url_too_long": {
        "en": "The URL is longer than this server takes.",
        "ja": "URL がこのサーバーの上限より長くなっています。",
    },
    "headers_too_large": {
        "en": "The request's header fields are larger or more than this server takes.",
        "ja": "リクエストヘッダーの大きさまたは個数がこのサーバーの上限を超えています。",
    },
    "transfer_encoding": {
        "en": 'The only Transfer-Encoding that is taken is "chunked".',
        "ja": "Transfer-Encoding は「chunked」だけに対応しています。",
    },
    "rate_limit_exceeded": {
        "en": "Limit reached for this {scope}: {amount} {unit} per {window}. Try again in {seconds} s.",
        "ja": "この{scope}の上限 (1 {window}あたり {amount} {unit}) に達しました。{seconds} 秒後にもう一度お試しください。",
    },
    "too_many_concurrent": {
        "en": "This {scope} already has {amount} {unit} running at the same time, the most that it may.",
        "ja": "この{scope}で同時に実行できる{unit}は {amount} 件までです。実行中のものが終わってからお試しください。",
    },
    "held_by_running_requests": {
        "en": "Requests that are running hold what is left of this {scope}'s limit of {amount} {unit} per {window}: each "
        "holds the most that it may use until it ends. Try again in a second, or send fewer at the same time.",
        "ja": "この{scope}の上限 (1 {window}あたり {amount} {unit}) の残りは、実行中のリクエストのために確保されています"
        " (終わるまで、使いうる最大の量が確保されます)。1 秒後にもう一度試すか、同時に送る数を減らしてください。",
    },
    "too_many_bytes": {
        "en": "The requests of this API key hold {amount} MB at the same time, the most that they may. Try again when some of them have finished.",
        "ja": "この API キーの処理中のリクエストの合計が、同時に扱える上限 {amount} MB に達しました。いくつか終わってからもう一度お試しください。",
    },
    "server_busy": {
        "en": "The server holds as many large requests as its memory allows. Try again in {seconds} s.",
        "ja": "サーバーが同時に扱えるデータ量の上限に達しました。{seconds} 秒後にもう一度お試しください。",
    },
    "insufficient_quota": {
        "en": "The quota of this {scope}, {amount} {unit} per {window}, is used up. It returns at {returns}.",
        "ja": "この{scope}の利用上限 (1 {window}あたり {amount} {unit}) を使い切りました。{returns} に回復します。",
    },
    "blocked_by_quota": {
        "en": "This {scope} may not call this model: its quota is 0 {unit}. Ask an admin of the tenant or an operator.",
        "ja": "この{scope}からはこのモデルを利用できません (利用上限が 0 {unit} に設定されています)。"
        "テナント管理者または運用管理者にお問い合わせください。",
    },
    "batch_held_back": {
        "en": 'The model "{model}" is busy with interactive requests, which go before those of batch keys. '
        "Try again in {seconds} s.",
        "ja": "モデル「{model}」は対話用のリクエストで混み合っています。バッチ用のキーのリクエストはその後になります。"
        "{seconds} 秒後にもう一度お試しください。",
    },
    "model_busy": {
        "en": 'More requests wait for the model "{model}" than it can answer soon. Try again in {seconds} s.',
        "ja": "モデル「{model}」への順番待ちのリクエストが多く、しばらく応答できません。"
        "{seconds} 秒後にもう一度お試しください。",
    },
    "model_unavailable": {
        "en": 'The model "{model}" is not running right now. The operators can see why.',
        "ja": "モデル「{model}」は現在稼働していません。理由は運用管理者が確認できます。",
    },
    "model_without_room": {
        "en": 'There is no memory for the model "{model}": models that are always kept loaded, or other work on its hosts, '
        "use it. The operators can see what does.",
        "ja": "モデル「{model}」を読み込むメモリがありません。常に読み込んでおく設定のモデルか、ホスト上のほかの処理が"
        "使用しています。何が使用しているかは、運用管理者が確認できます。",
    },
    "model_loading": {
        "en": 'The model "{model}" is being loaded. Try again in {seconds} s.',
        "ja": "モデル「{model}」を読み込んでいます。{seconds} 秒後にもう一度お試しください。",
    },
    "too_many_loading": {
        "en": "{amount} other models are being loaded for your calls, or were a moment ago. Try again in {seconds} s.",
        "ja": "ほかのモデル {amount} 個を読み込み中か、直前に読み込んだところです。{seconds} 秒後にもう一度お試しください。",
    },
    "metering_unavailable": {
        "en": "Usage cannot be recorded right now, so no new requests are taken. The operators are needed.",
        "ja": "現在、利用量を記録できないため、新しいリクエストを受け付けていません。運用管理者にご連絡ください。",
    },
    "request_not_found": {
        "en": "There is no request {id} of this key's owner. The id is in the header x-request-id of its answer.",
        "ja": "このキーの所有者のリクエスト {id} は見つかりません。ID は応答のヘッダー x-request-id で確認できます。",
    },
    "request_too_old": {
        "en": "Feedback is taken for 7 days after the request.",
        "ja": "フィードバックを送れるのは、リクエストから 7 日以内です。",
    },
    "feedback_rate": {
        "en": "This key sends too much feedback: at most {amount} a minute are taken, and 1,000 an hour.",
        "ja": "このキーからのフィードバックが多すぎます。受け付けるのは 1 分に {amount} 件、1 時間に 1,000 件までです。",
    },
    "feedback_too_large": {
        "en": "Feedback is larger than the {limit} KB that this server takes.",
        "ja": "フィードバックがこのサーバーの上限 {limit} KB を超えています。",
    },
    "feedback_unavailable": {
        "en": "Feedback cannot be stored right now. Try again in half a minute.",
        "ja": "現在、フィードバックを保存できません。30 秒ほど待ってからもう一度お試しください。",
    },
    "engine_error": {
        "en": "The model failed while it worked on this request.",
        "ja": "リクエストの処理中にモデルでエラーが発生しました。",
    },
    "invalid_loops": {
        "en": 'The header {param} is "{sent}"; it must be one of: {modes}.',
        "ja": "ヘッダー {param} の値「{sent}」は使えません。次のいずれかを指定してください: {modes}",
    },
    "invalid_replica": {
        "en": "The header {param} is not the number of a replica.",
        "ja": "ヘッダー {param} の値がレプリカの番号ではありません。",
    },
    "answer_too_large": {
        "en": "The answer is larger than the {limit} MB that this server holds of one. Ask for less at a time, or with "
        '"stream": true.',
        "ja": "応答が、このサーバーで一度に保持できる {limit} MB を超えました。一度に求める量を減らすか、"
        "「stream」を true にしてください。",
    },
    "engine_died": {
        "en": "The model's engine died while it worked on this request. The request was not sent to another engine, "
        "because it may be the cause.",
        "ja": "このリクエストの処理中にモデルのエンジンが異常終了しました。原因がこのリクエストにある可能性があるため、"
        "別のエンジンには送っていません。",
    },
    "split_engine_died": {
        "en": "The model's engine, which runs on several hosts, died while it worked on this request. The request was not "
        "sent to another engine. Send it again in a minute.",
        "ja": "複数のホストで動作しているこのモデルのエンジンが、リクエストの処理中に異常終了しました。別のエンジンには"
        "送っていません。1 分ほど待ってから、もう一度お送りください。",
    },
    "suspected_poison": {
        "en": "An engine died while it worked on this very request, so it is not sent to another for {minutes} minutes. "
        "Change the request, or report the request id to the operators.",
        "ja": "これと同じリクエストの処理中にエンジンが異常終了したため、{minutes} 分間は送信できません。"
        "内容を変えるか、リクエスト ID を運用管理者にお知らせください。",
    },
    "engine_busy": {
        "en": "The model takes no more requests right now.",
        "ja": "モデルは現在これ以上のリクエストを受け付けられません。",
    },
    "engine_timeout": {
        "en": "The model did not answer in time.",
        "ja": "モデルから時間内に応答がありませんでした。",
    },
    "internal_error": {
        "en": "The server failed while it worked on this request. Report the request id to the operators.",
        "ja": "リクエストの処理中にサーバーでエラーが発生しました。リクエスト ID を運用管理者にお知らせください。",
    },
    "shutting_down": {
        "en": "The server is restarting. Try again in a few seconds.",
        "ja": "サーバーを再起動しています。数秒後にもう一度お試しください。",
    },
}

WORDS: dict[Language, dict[str, str]] = {
    "en": {},
    "ja": {
        "tenant": "テナント",
        "user": "ユーザー",
        "member": "メンバー",
        "key": " API キー",  # always after "この"
        "minute": "分",
        "day": "日",
        "month": "か月",
        "chat": "チャット",
        "embedding": "埋め込み",
        "rerank": "リランク",
        "transcription": "文字起こし",
        "object expected": "オブジェクトにしてください",
        "too many parts": "パートが多すぎます",
        "unknown member": "この項目はありません",
        "1 or -1": "1 か -1 を指定してください",
        "the id of a request": "リクエストの ID を指定してください",
        "a text": "文字列にしてください",
        "a text without the character U+0000": "文字 U+0000 を含まない文字列にしてください",
        "a whole number": "正の整数にしてください",
        "no final boundary": "終わりの boundary がありません",
    },
}


def release_frames(error: BaseException) -> None:
    """Let go of what a call held where its error passed, once the error is raised no further.

    A traceback holds the frames, they hold the call with its body, and the future or the meter of that holds the error:
    only the garbage collector could free it, which runs rarely here, and a body may have megabytes.
    """
    passed: BaseException | None = error
    while passed is not None:
        passed.__traceback__ = None
        passed = passed.__context__


class ClientDisconnected(Exception):
    """The client closed its connection before its request was complete. No refusal: no client is left to read one."""


class Refusal(Exception):
    """Why a request got no answer. Class attributes are what every instance of a kind shares."""

    status: ClassVar[int] = 400
    type: ClassVar[str] = "invalid_request_error"

    def __init__(
        self,
        text: str,
        *,
        code: str = "",
        param: str | None = None,
        headers: dict[str, str] | None = None,
        **facts: Any,
    ) -> None:
        """Make a refusal.

        `text` names a row of MESSAGES, `facts` fill it; `code` is what clients see, by default the same word.
        """
        super().__init__(text)
        self.text = text
        self.code = code or text
        self.param = param
        self.headers = headers or {}
        self.facts = facts
        self.logged = False  # in the log's line of its call, and in its row of usage
        self.model = ""  # the name of the model that it is about, if the key may use that

    def message(self, language: Language) -> str:
        """Return the sentence for the caller."""
        facts = {name: translate(name, value, language) for name, value in self.facts.items()}
        return MESSAGES[self.text][language].format(param=self.param, **facts)

    def error(self, language: Language) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return {"message": self.message(language), "type": self.type, "param": self.param, "code": self.code}


# Facts that hold words of ours; what callers and engines write stays as it is: a model may be called "chat".
IN_WORDS = frozenset({"scope", "window", "task", "detail"})


def translate(name: str, fact: Any, language: Language) -> Any:
    """Return a fact as a message says it: words that come in each language, or that WORDS knows; else as it is."""
    if isinstance(fact, Mapping):
        return fact[language]
    return WORDS[language].get(fact, fact) if name in IN_WORDS else fact


class InvalidKey(Refusal):
    status = 401
    type = "authentication_error"

    def __init__(self, text: str, *, digest: str = "") -> None:
        """`digest`: of the key's text, if it could be one of ours."""
        super().__init__(text, code="invalid_api_key", headers={"www-authenticate": 'Bearer realm="madoguchi"'})
        self.digest = digest


class NetworkNotAllowed(Refusal):
    status = 403
    type = "permission_error"


class UnknownPath(Refusal):
    status = 404


class WrongMethod(Refusal):
    status = 405


class UnknownModel(Refusal):
    status = 404

    def __init__(self, text: str, **facts: Any) -> None:
        # One code for both: it is the one that clients know for a model that they cannot have.
        super().__init__(text, code="model_not_found", param="model", **facts)


class UnknownRequest(Refusal):
    status = 404


class FeedbackUnavailable(Refusal):
    status = 503
    type = "server_error"


class BadRequest(Refusal):
    pass


class ContextExceeded(BadRequest):
    pass


class BodyTooLarge(Refusal):
    status = 413


class BodyTooSlow(Refusal):
    status = 408


class UnknownCoding(Refusal):
    status = 415

    def __init__(self, text: str, **facts: Any) -> None:
        super().__init__(text, code="unsupported_content_encoding", **facts)


class Malformed(Refusal):
    pass


class UrlTooLong(Refusal):
    status = 414


class HeadTooLarge(Refusal):
    status = 431


class UnknownTransferCoding(Refusal):
    status = 501


class OverRate(Refusal):
    """`type` is "requests" or "tokens": set per instance, as OpenAI does."""

    status = 429

    def __init__(self, text: str, *, type: str, headers: dict[str, str], **facts: Any) -> None:
        super().__init__(text, code="rate_limit_exceeded", headers=headers, **facts)
        self.type = type  # type: ignore[misc]


class OverMemory(Refusal):
    """A caller, or all together, would make this process hold too much."""


class TooManyAtOnce(OverMemory):
    status = 429
    type = "requests"

    def __init__(self, text: str, **facts: Any) -> None:
        super().__init__(text, code="rate_limit_exceeded", **facts)


class ServerBusy(OverMemory):
    status = 503
    type = "server_error"


class OverQuota(Refusal):
    status = 429
    type = "insufficient_quota"

    def __init__(self, text: str, *, headers: dict[str, str], **facts: Any) -> None:
        super().__init__(text, code="insufficient_quota", headers=headers, **facts)


class BatchBusy(Refusal):
    status = 429
    type = "requests"


class ModelBusy(Refusal):
    status = 503
    type = "server_error"


class ModelUnavailable(Refusal):
    status = 503
    type = "server_error"


class MeteringUnavailable(Refusal):
    status = 503
    type = "server_error"


class Internal(Refusal):
    """A fault of the gateway itself."""

    status = 500
    type = "server_error"

    def __init__(self) -> None:
        super().__init__("internal_error")


class EngineFailed(Refusal):
    status = 502
    type = "server_error"

    def __init__(self, text: str = "engine_error") -> None:
        super().__init__(text, code="engine_error")


class EngineBusy(Refusal):
    """An engine takes no more; with its own status (429 or 503) and its own time to come back."""

    type = "server_error"

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__("engine_busy", headers=headers)
        self.status = status  # type: ignore[misc]


class EngineTimeout(Refusal):
    status = 504
    type = "server_error"

    def __init__(self) -> None:
        super().__init__("engine_timeout")
