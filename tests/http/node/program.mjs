// Drives the door with npm's SDKs: `node program.mjs BASE_URL TOKEN UNIX_PATH MODEL`; prints what they saw.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { Ollama } from "ollama";
import OpenAI from "openai";
import { Agent, fetch as undiciFetch } from "undici";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false; // they would come before the results
const [baseURL, apiKey, socketPath, model] = process.argv.slice(2);
const dispatcher = new Agent(socketPath ? { connect: { socketPath } } : {});
const fetch = (url, init) => undiciFetch(url, { ...init, dispatcher });

const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const weather = { name: "weather", description: "The weather of a city", parameters: schema };
const question = "Does it rain?";

const client = new OpenAI({ baseURL, apiKey, fetch, maxRetries: 0 });

// A tool loop of chat completions, its first answer as a stream that the SDK puts together.
async function chat() {
  const tools = [{ type: "function", function: weather }];
  const messages = [{ role: "user", content: question }];
  const stream = client.chat.completions.stream({ model, messages, tools, stream_options: { include_usage: true } });
  const pieces = [];
  for await (const chunk of stream) {
    const [call] = chunk.choices[0]?.delta.tool_calls ?? [];
    if (call) pieces.push(call.function.arguments);
  }
  const first = await stream.finalChatCompletion();
  const { message } = first.choices[0];
  const [call] = message.tool_calls;
  messages.push(message, { role: "tool", tool_call_id: call.id, content: "wet" });
  const second = await client.chat.completions.create({ model, messages, tools });
  return {
    content: message.content,
    call: JSON.parse(call.function.arguments),
    pieces: pieces.length,
    reason: first.choices[0].finish_reason,
    tokens: first.usage.total_tokens,
    text: second.choices[0].message.content,
  };
}

// The same with responses, the conversation kept by the server.
async function responses() {
  const tools = [{ type: "function", strict: false, ...weather }];
  const stream = client.responses.stream({ model, input: question, tools });
  const types = [];
  for await (const event of stream) types.push(event.type);
  const first = await stream.finalResponse();
  const call = first.output.find((item) => item.type === "function_call");
  const input = [{ type: "function_call_output", call_id: call.call_id, output: "wet" }];
  const second = await client.responses.create({ model, input, tools, previous_response_id: first.id });
  return {
    content: first.output_text,
    call: JSON.parse(call.arguments),
    ends: [types[0], types.at(-1)],
    tokens: first.usage.total_tokens,
    text: second.output_text,
  };
}

// A tool loop that the AI SDK runs by itself.
async function loop(languageModel, providerOptions) {
  const calls = [];
  const result = streamText({
    model: languageModel,
    prompt: question,
    tools: {
      weather: tool({
        description: weather.description,
        inputSchema: z.object({ city: z.string() }),
        execute: async (input) => {
          calls.push(input);
          return "wet";
        },
      }),
    },
    stopWhen: stepCountIs(3),
    maxRetries: 0,
    providerOptions,
  });
  const types = new Set();
  const errors = [];
  for await (const part of result.fullStream) {
    types.add(part.type);
    if (part.type === "error") errors.push(String(part.error));
  }
  return {
    errors,
    calls,
    types: [...types],
    text: errors.length ? "" : await result.text,
    steps: errors.length ? 0 : (await result.steps).length,
    reasoning: errors.length ? "" : (await result.steps)[0].reasoningText,
  };
}

// A tool loop by Ollama's API, its first answer as a stream.
async function ollama() {
  const headers = { authorization: `Bearer ${apiKey}` };
  const host = new Ollama({ host: baseURL.replace("/v1", ""), headers, fetch });
  const tools = [{ type: "function", function: weather }];
  const messages = [{ role: "user", content: question }];
  const first = { role: "assistant", content: "", thinking: "", tool_calls: [] };
  for await (const { message } of await host.chat({ model, messages, tools, stream: true })) {
    first.content += message.content;
    first.thinking += message.thinking ?? "";
    first.tool_calls.push(...(message.tool_calls ?? []));
  }
  messages.push(first, { role: "tool", tool_name: "weather", content: "wet" });
  const second = await host.chat({ model, messages, tools });
  return {
    content: first.content,
    thinking: first.thinking,
    calls: first.tool_calls.map((call) => call.function.arguments),
    text: second.message.content,
  };
}

async function object(languageModel) {
  const form = Output.object({ schema: z.object({ a: z.boolean() }) });
  const { output } = await generateText({ model: languageModel, prompt: "Hello", output: form, maxOutputTokens: 40, maxRetries: 0 });
  return typeof output.a;
}

async function refused(call) {
  try {
    await call();
  } catch (error) {
    return { name: error.constructor.name, status: error.status, param: error.param };
  }
  return null;
}

const compatible = createOpenAICompatible({ name: "sidecar", baseURL, apiKey, fetch, includeUsage: true, supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL, apiKey, fetch });
const anthropic = createAnthropic({ baseURL, apiKey, fetch });
const summary = { openai: { reasoningSummary: "auto", forceReasoning: true } };
const own = { openai: { ...summary.openai, store: false, include: ["reasoning.encrypted_content"] } };

console.log(JSON.stringify({
  models: (await client.models.list()).data.map((one) => one.id),
  chat: await chat(),
  responses: await responses(),
  ai_compatible: await loop(compatible(model)),
  ai_chat: await loop(openai.chat(model)),
  ai_responses: await loop(openai.responses(model), summary),
  ai_own_history: await loop(openai.responses(model), own),
  ai_anthropic: await loop(anthropic(model)),
  ai_object: [await object(compatible("embedded")), await object(openai.responses("embedded"))],
  ollama: await ollama(),
  refused: await refused(() => client.responses.create({ model: "embedded", input: "Hi", background: true })),
}));
await dispatcher.close();
