// A conversation as a tree: a message that is edited and an answer that is made again are branches beside the first ones.
// A node is {role, parent, children, chosen} with, by its role,
//   "root"       useCase: {id, version, isTried}, if it began with one; `given`: how many messages came with it
//   "user"       text, files: [{kind: "text", name, text} | {kind: "image", name, url}]
//   "tool"       results: [{id, content}]
//   "assistant"  columns, one for each model that was asked: {model, text, thoughts, toolCalls, …facts}

export class Conversation {
  constructor() {
    this.root = { role: "root", parent: null, children: [], chosen: -1 };
  }

  add(parent, node) {
    Object.assign(node, { parent, children: [], chosen: -1 });
    parent.chosen = parent.children.push(node) - 1;
    return node;
  }

  // Takes a branch away again; the one before it is shown.
  remove(node) {
    const { parent } = node, at = parent.children.indexOf(node);
    parent.children.splice(at, 1);
    if (parent.chosen >= at) parent.chosen = Math.min(parent.children.length - 1, Math.max(0, parent.chosen - 1));
  }

  // Shows the branch that is so many places later.
  page(node, step) {
    const { parent } = node;
    parent.chosen = Math.min(Math.max(parent.chosen + step, 0), parent.children.length - 1);
    return parent.children[parent.chosen];
  }

  // The nodes that are shown, in their order.
  get path() {
    const found = [];
    for (let node = this.root.children[this.root.chosen]; node; node = node.children[node.chosen]) found.push(node);
    return found;
  }

  get end() { return this.path.at(-1) ?? this.root; }

  get isEmpty() { return this.root.children.length === 0; }
}

// The nodes from the first one to this one.
function wayTo(node) {
  const way = [];
  for (let at = node; at.parent; at = at.parent) way.unshift(at);
  return way;
}

// The column that goes on with this model: its own, else one that said anything.
export const columnFor = (node, model) =>
  node.columns.find((column) => column.model === model && (column.text || column.toolCalls.length))
  ?? node.columns.find((column) => column.text || column.toolCalls.length);

const fenced = (file) => {
  const fence = "`".repeat(Math.max(3, ...[...file.text.matchAll(/`+/g)].map(([run]) => run.length + 1)));
  return `${file.name}:\n${fence}\n${file.text}\n${fence}\n\n`;
};

// The use case that a question to a model is a use of: only the first one that is sent is, and what follows is a
// conversation about its answer. null: of none.
export function useCaseOf(message, root) {
  const sent = wayTo(message).slice(root.given ?? 0).filter((node) => node.role === "user");
  return root.useCase && sent.length === 1 ? root.useCase : null;
}

// The content of a message: text alone, or parts where there are images.
export function contentOf({ text, files }) {
  const words = files.filter((file) => file.kind === "text").map(fenced).join("") + text;
  const images = files.filter((file) => file.kind === "image" && file.url);
  if (!images.length) return words;
  return [{ type: "text", text: words }, ...images.map(({ url }) => ({ type: "image_url", image_url: { url } }))];
}

// The messages of a call whose last one is `node`, for one of the models.
export function messagesTo(node, model, system) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const at of wayTo(node)) {
    if (at.role === "user") messages.push({ role: "user", content: contentOf(at) });
    else if (at.role === "tool") {
      messages.push(...at.results.map(({ id, content }) => ({ role: "tool", tool_call_id: id, content })));
    } else {
      const column = columnFor(at, model);
      if (!column) continue;
      messages.push({
        role: "assistant",
        content: column.text,
        ...(column.toolCalls.length ? { tool_calls: column.toolCalls } : {}),
      });
    }
  }
  return messages;
}

// What can be kept as JSON: the tree without the ways up and places on the page, and without images, which are large.
export function pack(node) {
  const { parent, children, files, views, ...own } = node;
  return {
    ...own,
    ...(files ? { files: files.map(({ url, ...file }) => file) } : {}),
    children: children.map(pack),
  };
}

function unpackInto(node, parent) {
  node.parent = parent;
  for (const child of node.children) unpackInto(child, node);
}

export function unpack(packed) {
  const conversation = new Conversation();
  conversation.root = structuredClone(packed);
  unpackInto(conversation.root, null);
  return conversation;
}
