// Ask an exported folder a question with swift-transformers (package "swift-transformers", product "Transformers",
// 1.0 or newer; iOS 18, macOS 15).
//
//     swift run chat FOLDER "What is the capital of France?"
//
// FOLDER was written by qwen3-export coreml: model.mlpackage, with tokenizer and configs beside it. An app compiles the
// package at build time instead, and calls LanguageModel.loadCompiled(url:) on the .mlmodelc.

import CoreML
import Foundation
import Generation
import Models
import Tokenizers

let folder = URL(fileURLWithPath: CommandLine.arguments[1])
let question = CommandLine.arguments[2]

let compiled = try await MLModel.compileModel(at: folder.appending(path: "model.mlpackage"))
let tokenizer = try await AutoTokenizer.from(modelFolder: folder)
// The package declares keyCache and valueCache, so this is a LanguageModelWithStatefulKVCache.
let model = try LanguageModel.loadCompiled(url: compiled, computeUnits: .cpuAndGPU, tokenizer: tokenizer)

let tokens = try tokenizer.applyChatTemplate(
    messages: [["role": "user", "content": question]],
    tools: nil,
    additionalContext: ["enable_thinking": false]
)

// Qwen's own defaults for answers without thinking.
var config = GenerationConfig(maxNewTokens: 256)
config.doSample = true
config.temperature = 0.7
config.topP = 0.8
config.topK = 20
config.eosTokenId = tokenizer.eosTokenId

let answer = try await model.generate(config: config, tokens: tokens)
print(tokenizer.decode(tokens: Array(answer.dropFirst(tokens.count)), skipSpecialTokens: true))
