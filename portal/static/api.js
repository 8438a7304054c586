// Shows the description of the API. Calls tried from here carry the session of who looks, hence the token.

const place = document.querySelector("#api");

SwaggerUIBundle({
  domNode: place,
  url: place.dataset.schema,
  validatorUrl: null,
  deepLinking: true,
  docExpansion: "none",
  defaultModelsExpandDepth: -1,
  requestInterceptor: (request) => {
    request.headers["X-CSRFToken"] = place.dataset.csrf;
    return request;
  },
});

// Long examples scroll, so the keyboard must reach them.
new MutationObserver(() => {
  for (const example of place.querySelectorAll("pre:not([tabindex])")) example.tabIndex = 0;
}).observe(place, { childList: true, subtree: true });
