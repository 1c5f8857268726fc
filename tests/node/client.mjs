// A client that is not Python: calls every RPC over the Unix socket and prints what it saw as one JSON object.
//
//   node client.mjs SOCKET PROTO_DIRECTORY MODEL

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [socket, protos, model] = process.argv.slice(2);
const OPTIONS = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };

const definition = await protoLoader.load("mlx_sidecar/v1/sidecar.proto", { ...OPTIONS, includeDirs: [protos] });
const { SidecarService } = grpc.loadPackageDefinition(definition).mlx_sidecar.v1;

// The parts of google.rpc that an error's details are made of; npm has no package of them.
const GOOGLE_RPC = {
  Any: { fields: { type_url: { type: "string", id: 1 }, value: { type: "bytes", id: 2 } } },
  Status: {
    fields: {
      code: { type: "int32", id: 1 },
      message: { type: "string", id: 2 },
      details: { rule: "repeated", type: "Any", id: 3 },
    },
  },
  ErrorInfo: {
    fields: {
      reason: { type: "string", id: 1 },
      domain: { type: "string", id: 2 },
      metadata: { keyType: "string", type: "string", id: 3 },
    },
  },
  FieldViolation: { fields: { field: { type: "string", id: 1 }, description: { type: "string", id: 2 } } },
  BadRequest: { fields: { field_violations: { rule: "repeated", type: "FieldViolation", id: 1 } } },
};
const details = protoLoader.fromJSON({ nested: GOOGLE_RPC }, OPTIONS);

const decodeError = (error) => {
  const [trailer] = error.metadata.get("grpc-status-details-bin");
  const decoded = { code: grpc.status[error.code], message: error.details };
  for (const { type_url, value } of trailer ? details.Status.deserialize(trailer).details : []) {
    const name = type_url.split(".").at(-1);
    decoded[name] = details[name]?.deserialize(value);
  }
  return decoded;
};

const client = new SidecarService(`unix:${socket}`, grpc.credentials.createInsecure());
const deadline = () => ({ deadline: Date.now() + 60_000 });

const unary = (method, request) =>
  new Promise((resolve, reject) => {
    client[method](request, deadline(), (error, response) => (error ? reject(error) : resolve(response)));
  });

// Returns all messages and, if the call failed, its error; `each` may cancel the call.
const stream = (method, request, each = () => {}) =>
  new Promise((resolve) => {
    const messages = [];
    const call = client[method](request, deadline());
    call.on("data", (message) => {
      messages.push(message);
      each(message, call);
    });
    call.on("end", () => resolve({ messages, error: null }));
    call.on("error", (error) => resolve({ messages, error: decodeError(error) }));
  });

const chat = { messages: [{ role: "user", content: "Say something." }] };
const endless = { ignore_eos: true };
const cancelAtOnce = (_, call) => call.cancel();

const load = await stream("GetOrLoad", { model });
const generate = await stream("Generate", { model, chat, max_tokens: 8, request_id: "from-node" });
const cancelled = await stream("Generate", { model, text: "Say something.", stop: endless }, cancelAtOnce);
const refused = await stream("Generate", { model, text: "Say something.", sampling: { temperature: -1 } });
const counted = await unary("Tokenize", { model, chat });
const listed = await unary("ListModels", {});
const embedded = await stream("Embed", { model, texts: ["a ship", "a bird"], pooling: "POOLING_LAST_TOKEN" });
const stats = await unary("Stats", {});
const invalidated = await unary("Invalidate", { model: { model, prefixes: true } });
client.close();

console.log(JSON.stringify({ load, generate, cancelled, refused, counted, listed, embedded, stats, invalidated }));
