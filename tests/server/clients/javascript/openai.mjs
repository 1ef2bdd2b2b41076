// OpenAI's own client against the server whose base URL is the argument. Prints as JSON what it got.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: process.argv[3], maxRetries: 0, timeout: 60_000 });
const model = "tiny-llama";
const messages = [{ role: "user", content: "hello" }];
const settings = { model, messages, seed: 7, temperature: 0.8, max_completion_tokens: 8 };
const got = {};

got.models = [];
for await (const each of client.models.list()) got.models.push(each.id);
got.model = (await client.models.retrieve(model)).id;

const whole = await client.chat.completions.create({ ...settings, n: 2, logprobs: true, top_logprobs: 3 });
got.whole = whole.choices.map((choice) => choice.message.content);
got.logprobs = whole.choices[0].logprobs.content.map((token) => token.top_logprobs.length);
got.usage = whole.usage;

const stream = await client.chat.completions.create({ ...settings, stream: true, stream_options: { include_usage: true } });
got.streamed = { text: "", finish: null };
for await (const chunk of stream) {
  got.streamed.text += chunk.choices[0]?.delta.content ?? "";
  got.streamed.finish ??= chunk.choices[0]?.finish_reason ?? null;
  got.streamed.usage = chunk.usage ?? got.streamed.usage;
}

const completion = await client.completions.create({ model, prompt: "hello", max_tokens: 4, temperature: 0, echo: true });
got.completion = completion.choices[0].text;

const helper = client.chat.completions.stream(settings);
got.helper = (await helper.finalChatCompletion()).choices[0].message.content;

got.errors = {};
async function refused(name, call) {
  try {
    await call();
  } catch (error) {
    got.errors[name] = { kind: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}
await refused("unknown model", () => client.chat.completions.create({ model: "none", messages }));
await refused("too long", () => client.chat.completions.create({ model, messages, max_tokens: 1_000_000 }));
await refused("min_p", () => client.chat.completions.create({ model, messages, min_p: 0.5 }));
await refused("wrong key", () =>
  new OpenAI({ baseURL: process.argv[2], apiKey: "another", maxRetries: 0 }).models.list(),
);

const left = await client.chat.completions.create({ model, messages, stream: true });
for await (const _ of left) break; // leaving the loop aborts the request
got.left = left.controller.signal.aborted;

console.log(JSON.stringify(got));
