// Shows the description of the API. Calls tried from here carry the session of who looks, hence the token.

const place = document.querySelector("#api");

// Swagger UI puts a link into the button that opens an operation; the address changes as it opens without that.
const namesWithoutLinks = ({ React }) => ({
  components: { DeepLink: ({ text }) => React.createElement("span", { className: "name" }, text) },
});

SwaggerUIBundle({
  domNode: place,
  url: place.dataset.schema,
  validatorUrl: null,
  deepLinking: true,
  docExpansion: "none",
  defaultModelsExpandDepth: -1,
  plugins: [namesWithoutLinks],
  requestInterceptor: (request) => {
    request.headers["X-CSRFToken"] = place.dataset.csrf;
    return request;
  },
});

// Long examples scroll, so the keyboard must reach them. Bodies are entered in fields without names.
new MutationObserver(() => {
  for (const example of place.querySelectorAll("pre:not([tabindex])")) example.tabIndex = 0;
  for (const field of place.querySelectorAll("textarea:not([aria-label])")) field.ariaLabel = place.dataset.body;
}).observe(place, { childList: true, subtree: true });
