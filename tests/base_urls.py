"""Paths that clients with a wrong base URL ask for, and what each of them means."""

WRONG = {
    "/chat/completions": "/v1/chat/completions",
    "/completions": "/v1/completions",
    "/embeddings": "/v1/embeddings",
    "/messages": "/v1/messages",
    "/messages/count_tokens": "/v1/messages/count_tokens",
    "/models": "/v1/models",
    "/responses": "/v1/responses",
    "/score": "/v1/score",
    "/audio/transcriptions": "/v1/audio/transcriptions",
    "/v1/v1/messages": "/v1/messages",
    "/v1/v1/chat/completions": "/v1/chat/completions",
    "/v1/chat/completions/chat/completions": "/v1/chat/completions",
    "/v1/chat/completions/models": "/v1/models",
    "/v1/embeddings/embeddings": "/v1/embeddings",
    "/v1/rerank/rerank": "/v1/rerank",
    "/openai/v1/embeddings": "/v1/embeddings",
    "/openai/v1/models": "/v1/models",
    "/api/chat/completions": "/v1/chat/completions",
    "/api/v1/chat/completions": "/v1/chat/completions",
    "/openai/deployments/m/chat/completions": "/v1/chat/completions",
}
NOTHING = ("/v1", "/v1/", "/v1/nope")  # with a wrong base URL or not: nothing is there
OF_THE_PORTAL = ("/api/v1/models", "/api/v1/models/", "/keys/", "/operations/models/", "/usage/models")
