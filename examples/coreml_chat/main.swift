// Ask an exported folder a question with swift-transformers (package "swift-transformers", product "Transformers",
// 1.0 or newer; iOS 18, macOS 15).
//
//     swift run chat FOLDER "What is the capital of France?"
//
// FOLDER was written by qwen3-export coreml: model.mlpackage, with tokenizer and configs beside it. An app compiles the
// package at build time instead, and calls LanguageModel.loadCompiled(url:) on the .mlmodelc.
//
// The package takes inputIds and attentionMask, both of which the library fills at every call: the whole prompt first,
// then one token at a time. The program builds the causal mask itself. (An export with --mask fullAttentionMask is for
// code that calls MLModel directly; with it, predictNextTokenScores stops the app.)

import CoreML
import Foundation
import Generation
import Models
import Tokenizers

let folder = URL(fileURLWithPath: CommandLine.arguments[1])
let question = CommandLine.arguments[2]
let longestAnswer = 256

let compiled = try await MLModel.compileModel(at: folder.appending(path: "model.mlpackage"))
let tokenizer = try await AutoTokenizer.from(modelFolder: folder)
// The package declares keyCache and valueCache, so this is a LanguageModelWithStatefulKVCache.
let model = try LanguageModel.loadCompiled(url: compiled, computeUnits: .cpuAndGPU)

// All tokens that end a turn (one, or a list of them); the library itself stops at one.
let settings = try Data(contentsOf: folder.appending(path: "generation_config.json"))
let stated = (try JSONSerialization.jsonObject(with: settings) as? [String: Any])?["eos_token_id"]
let stops = Set(((stated as? [Int]) ?? [(stated as? Int) ?? tokenizer.eosTokenId ?? -1]).map { Int32($0) })

let prompt = try tokenizer.applyChatTemplate(
    messages: [["role": "user", "content": question]],
    tools: nil,
    additionalContext: ["enable_thinking": false]
)

var tokens = prompt.map { Int32($0) }
let end = min(prompt.count + longestAnswer, model.maxContextLength)
await model.resetState()
while tokens.count < end {
    let input = MLTensor(shape: [1, tokens.count], scalars: tokens, scalarType: Int32.self)
    let scores = await model.predictNextTokenScores(input, config: model.defaultGenerationConfig)
    let next = await scores.argmax(alongAxis: -1).shapedArray(of: Int32.self).scalars[0]
    if stops.contains(next) { break }
    tokens.append(next)
}
print(tokenizer.decode(tokens: tokens.dropFirst(prompt.count).map { Int($0) }, skipSpecialTokens: true))
