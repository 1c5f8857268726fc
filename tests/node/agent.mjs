// Makes the calls that another program tells it, one JSON object a line: {method, request}. Answers each with a line:
// the messages of the response, as stock gRPC read them.
//
//   node agent.mjs SOCKET PROTO_DIRECTORY

import { createInterface } from "node:readline";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [socket, protos] = process.argv.slice(2);
const options = { keepCase: true, longs: String, enums: String, includeDirs: [protos] };
const definition = await protoLoader.load("mlx_sidecar/v1/sidecar.proto", options);
const { SidecarService } = grpc.loadPackageDefinition(definition).mlx_sidecar.v1;
const client = new SidecarService(`unix:${socket}`, grpc.credentials.createInsecure());

const unary = (method, request) =>
  new Promise((resolve, reject) => {
    client[method](request, (error, response) => (error ? reject(error) : resolve([response])));
  });

const stream = async (method, request) => {
  const messages = [];
  for await (const message of client[method](request)) messages.push(message);
  return messages;
};

for await (const line of createInterface({ input: process.stdin })) {
  const { method, request } = JSON.parse(line);
  const call = SidecarService.service[method].responseStream ? stream : unary;
  console.log(JSON.stringify(await call(method, request)));
}
client.close();
