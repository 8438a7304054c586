// The conversation that is shown, as files.

import { say } from "./words.js";

const asMarkdown = (node) => {
  if (node.role === "user") {
    const names = node.files.map((file) => `- ${file.name}\n`).join("");
    return `## ${say("me")}\n\n${names}${names && "\n"}${node.text}\n`;
  }
  if (node.role === "tool") return node.results.map(({ content }) => `## ${say("tool-result")}\n\n${content}\n`).join("\n");
  return node.columns.map((column) => {
    const calls = column.toolCalls.map((call) => `\`${call.function.name}(${call.function.arguments})\`\n`).join("");
    return `## ${column.model}\n\n${column.text}\n${calls}`;
  }).join("\n");
};

export const toMarkdown = (path, system) =>
  [...(system ? [`## ${say("system")}\n\n${system}\n`] : []), ...path.map(asMarkdown)].join("\n");

const asData = (node) => {
  if (node.role === "user") {
    return { role: "user", content: node.text, files: node.files.map(({ name, text }) => ({ name, text: text ?? null })) };
  }
  if (node.role === "tool") return { role: "tool", results: node.results };
  return {
    role: "assistant",
    answers: node.columns.map(({ model, text, thoughts, toolCalls, usage, ending, requestId }) =>
      ({ model, content: text, reasoning: thoughts, tool_calls: toolCalls, usage, ending, request_id: requestId })),
  };
};

export const toJson = (path, system) =>
  JSON.stringify({ exported_at: new Date().toISOString(), system, turns: path.map(asData) }, null, 2);
