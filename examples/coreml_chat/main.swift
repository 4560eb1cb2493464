// A question to an exported folder, through swift-transformers (package "swift-transformers", product
// "Transformers", 1.0 or newer; iOS 18, macOS 15).
//
//     swift run chat FOLDER "What is the capital of France?"
//
// FOLDER is what qwen3-export coreml wrote: model.mlpackage, with tokenizer and configs beside it. An app compiles the
// package when it is built, and calls LanguageModel.loadCompiled(url:) on the .mlmodelc instead.

import CoreML
import Foundation
import Generation
import Models
import Tokenizers

let folder = URL(fileURLWithPath: CommandLine.arguments[1])
let question = CommandLine.arguments[2]

let compiled = try await MLModel.compileModel(at: folder.appending(path: "model.mlpackage"))
let tokenizer = try await AutoTokenizer.from(modelFolder: folder)
// The package declares keyCache and valueCache, so that this is a LanguageModelWithStatefulKVCache.
let model = try LanguageModel.loadCompiled(url: compiled, computeUnits: .cpuAndGPU, tokenizer: tokenizer)

let tokens = try tokenizer.applyChatTemplate(
    messages: [["role": "user", "content": question]],
    tools: nil,
    additionalContext: ["enable_thinking": false]
)

// Qwen's own defaults for answers without a thought.
var config = GenerationConfig(maxNewTokens: 256)
config.doSample = true
config.temperature = 0.7
config.topP = 0.8
config.topK = 20
config.eosTokenId = tokenizer.eosTokenId

let answer = try await model.generate(config: config, tokens: tokens)
print(tokenizer.decode(tokens: Array(answer.dropFirst(tokens.count)), skipSpecialTokens: true))
