// The same call as a program. The key is a placeholder: the environment variable OPENAI_API_KEY.

// An apostrophe would end the shell's quotes around the body.
const quoted = (value) => JSON.stringify(value, null, 2).replaceAll("'", "\\u0027");

export const curl = (baseUrl, path, body) => `curl -N ${baseUrl}${path} \\
  -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '${quoted(body)}'`;

// JSON as a literal of Python: the same but for three words.
function literal(value, indent = "") {
  const deeper = `${indent}    `;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, deeper))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, deeper)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (!items.length) return open + close;
  const short = `${open}${items.join(", ")}${close}`;
  if (short.length < 90 && !short.includes("\n")) return short;
  return `${open}\n${items.map((item) => `${deeper}${item},\n`).join("")}${indent}${close}`;
}

const keywords = (members) =>
  Object.entries(members).map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`).join("");

export const python = (baseUrl, call) => `from openai import OpenAI

client = OpenAI(base_url="${baseUrl}")
stream = client.chat.completions.create(
${keywords(call)})
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()`;

export const pythonEmbeddings = (baseUrl, body) => `from openai import OpenAI

client = OpenAI(base_url="${baseUrl}")
answer = client.embeddings.create(
${keywords(body)})
print([len(one.embedding) for one in answer.data])`;

export const javascript = (baseUrl, call) => `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${baseUrl}" });
const stream = await client.chat.completions.create(${JSON.stringify(call, null, 2)});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
}
console.log();`;
