// Runs on Node.js: reads a JSON call per line, makes it with the real client, prints what came, as driver.py does.
//
// node driver.mjs DIRECTORY   with node_modules in it

import { createRequire } from "node:module";
import readline from "node:readline";

const require = createRequire(`${process.argv[2]}/`);
const { OpenAI, toFile } = require("openai");
const { embedMany, generateText, Output, stepCountIs, streamText, tool } = require("ai");
const { createOpenAI } = require("@ai-sdk/openai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const { z } = require("zod");

const client = (to) => new OpenAI({ ...to, maxRetries: 0, timeout: 60_000 });

// --- openai-node

async function openai_complete_stream({ to, ...fields }) {
  const stream = await client(to).completions.create({ ...fields, stream: true });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function openai_chat({ to, ...fields }) {
  return client(to).chat.completions.create(fields);
}

async function openai_chat_stream({ to, ...fields }) {
  const stream = client(to).chat.completions.stream({ ...fields, stream_options: { include_usage: true } });
  const texts = [];
  stream.on("content", (delta) => texts.push(delta));
  return { texts, whole: await stream.finalChatCompletion() };
}

/** Lets the SDK call the function that the model asks for, and ask again with its result. */
async function openai_tools({ to, ...fields }) {
  const asked = [];
  const weather = (given) => {
    asked.push(given);
    return "sunny";
  };
  const parameters = { type: "object", properties: { city: { type: "string" } } };
  const described = { name: "weather", description: "now", parameters, parse: JSON.parse, function: weather };
  const runner = client(to).chat.completions.runTools(
    { ...fields, tools: [{ type: "function", function: described }] },
    { maxChatCompletions: 1 },
  );
  await runner.done();
  return { asked, messages: runner.messages };
}

async function openai_response({ to, ...fields }) {
  return client(to).responses.create(fields);
}

async function openai_response_stream({ to, ...fields }) {
  const stream = client(to).responses.stream(fields);
  const texts = [];
  stream.on("response.output_text.delta", (event) => texts.push(event.delta));
  return { texts, whole: await stream.finalResponse() };
}

async function openai_embed({ to, ...fields }) {
  const { data, usage } = await client(to).embeddings.create(fields); // as base64, which it asks for by itself
  return { vectors: data.map(({ embedding }) => embedding), usage };
}

async function openai_models({ to }) {
  const names = [];
  for await (const model of client(to).models.list()) names.push(model.id);
  return names;
}

async function openai_transcribe({ to, bytes, ...fields }) {
  const file = await toFile(Buffer.alloc(bytes, 1), "speech.wav");
  return client(to).audio.transcriptions.create({ ...fields, file });
}

/** Leaves after the first piece. */
async function openai_leave({ to, ...fields }) {
  const stream = await client(to).chat.completions.create({ ...fields, stream: true });
  for await (const chunk of stream) return chunk;
}

// --- Vercel's AI SDK

const model = (to, kind, name) => {
  const given = { baseURL: to.baseURL, apiKey: to.apiKey };
  if (kind === "compatible") return createOpenAICompatible({ ...given, name: "madoguchi", includeUsage: true })(name);
  return kind === "chat" ? createOpenAI(given).chat(name) : createOpenAI(given)(name); // the latter: Responses
};

const fixed = { maxRetries: 0, timeout: 60_000 };

const told = ({ text, reasoningText, finishReason, usage, steps }) => ({
  text,
  reasoning: reasoningText,
  finishReason,
  usage,
  calls: steps.flatMap((step) => step.toolCalls.map(({ toolName, input }) => [toolName, input])),
  results: steps.flatMap((step) => step.toolResults.map(({ output }) => output)),
});

const tools = {
  weather: tool({
    description: "now",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `sunny in ${city}`,
  }),
};

const question = ({ to, kind, name, withTools, steps, ...more }) => ({
  ...fixed,
  ...more,
  model: model(to, kind, name),
  ...(withTools ? { tools, stopWhen: stepCountIs(steps) } : {}),
});

async function vercel_generate(given) {
  return told(await generateText(question(given)));
}

async function vercel_stream(given) {
  const failures = [];
  const result = streamText({ ...question(given), onError: ({ error }) => failures.push(error) });
  const texts = [];
  for await (const text of result.textStream) texts.push(text);
  if (failures.length) throw failures[0];
  const [text, reasoningText, finishReason, usage, steps] = await Promise.all([
    result.text, result.reasoningText, result.finishReason, result.usage, result.steps,
  ]);
  return { texts, ...told({ text, reasoningText, finishReason, usage, steps }) };
}

async function vercel_object(given) {
  const schema = z.object({ name: z.enum(["red", "green", "blue"]) });
  const { output } = await generateText({ ...question(given), output: Output.object({ schema }) });
  return output;
}

async function vercel_embed({ to, name, values }) {
  const made = createOpenAICompatible({ baseURL: to.baseURL, apiKey: to.apiKey, name: "madoguchi" });
  const { embeddings, usage } = await embedMany({ ...fixed, model: made.embeddingModel(name), values });
  return { vectors: embeddings, usage };
}

// ---

const CALLS = {
  openai_chat, openai_chat_stream, openai_complete_stream, openai_tools, openai_response, openai_response_stream, openai_embed,
  openai_models, openai_transcribe, openai_leave,
  vercel_generate, vercel_stream, vercel_object, vercel_embed,
};

console.log("ready");
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { do: name, ...given } = JSON.parse(line);
  try {
    console.log(JSON.stringify({ answer: (await CALLS[name](given)) ?? null }));
  } catch (error) {
    const { status, statusCode, code, requestID } = error;
    const type = error.constructor.name;
    console.log(JSON.stringify({ error: { type, status: status ?? statusCode, code, requestID, text: String(error).slice(0, 500) } }));
  }
}
