// The Vercel AI SDK against the server whose base URL is the argument. Prints as JSON what it got.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [, , baseURL, apiKey] = process.argv;
const provider = createOpenAICompatible({ name: "hone", baseURL, apiKey, includeUsage: true });
const settings = { model: provider("tiny-llama"), temperature: 0, maxOutputTokens: 12, maxRetries: 0 };
const question = [{ role: "user", content: "hello world" }];
const got = {};

const whole = await generateText({ ...settings, messages: question });
got.text = whole.text;
got.usage = { input: whole.usage.inputTokens, output: whole.usage.outputTokens };
got.finish = whole.finishReason;

const stream = streamText({ ...settings, messages: question });
got.parts = 0;
got.streamed = "";
for await (const part of stream.textStream) {
  got.streamed += part;
  got.parts += 1;
}
const usage = await stream.usage;
got.streamedUsage = { input: usage.inputTokens, output: usage.outputTokens };

const call = { toolCallId: "call_1", toolName: "weather" };
const history = [
  { role: "user", content: "how are you today?" },
  { role: "assistant", content: [{ type: "tool-call", ...call, input: { city: "Paris", unit: null } }] },
  { role: "tool", content: [{ type: "tool-result", ...call, output: { type: "text", value: "the quick brown fox" } }] },
];
got.history = (await generateText({ ...settings, messages: history })).text;

got.errors = {};
async function refused(name, options) {
  try {
    await generateText({ ...settings, messages: question, ...options });
  } catch (error) {
    got.errors[name] = { status: error.statusCode, message: error.message };
  }
}
await refused("too long", { maxOutputTokens: 100_000 });
const stranger = createOpenAICompatible({ name: "hone", baseURL, apiKey: "another" });
await refused("wrong key", { model: stranger("tiny-llama") });

console.log(JSON.stringify(got));
