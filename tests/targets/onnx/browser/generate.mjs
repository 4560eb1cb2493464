// Greedy tokens of a folder in transformers.js, on its default device: the same calls in Node and in a page.
export async function generate(transformers, { folder, dtype, prompts, count }) {
  const { AutoTokenizer, AutoModelForCausalLM } = transformers;
  const tokenizer = await AutoTokenizer.from_pretrained(folder);
  const model = await AutoModelForCausalLM.from_pretrained(folder, { dtype });
  // As the text-generation pipeline does: several prompts in one call are padded on the left.
  tokenizer.padding_side = 'left';
  const inputs = tokenizer(prompts, { add_special_tokens: false, padding: true });
  const all = await model.generate({ ...inputs, max_new_tokens: count, do_sample: false });
  await model.dispose();
  const [given, mask, made] = [inputs.input_ids, inputs.attention_mask, all].map(numbers);
  return prompts.map((_, i) => ({
    given: given[i].filter((_, j) => mask[i][j] === 1),
    made: made[i].slice(given[i].length),
  }));
}

function numbers(tensor) {
  return tensor.tolist().map((row) => row.map(Number));
}
