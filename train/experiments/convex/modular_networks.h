#pragma once
// The networks of the experiment modular that are trained step by step, by AdamW (betas 0.9, 0.98,
// rate 1e-3 after 10 steps of warm-up, batches without replacement).
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "train/experiments/convex/modular_table.h"

namespace kktorch::convex {

/// {"log": [{"update", "train", "test" accuracy in %}], "seconds" without evaluation}.

/// A: causal post-norm Transformer on the tokens EOS a / b = c EOS (Power et al., arXiv
/// 2201.02177), width 128, 4 heads, sinusoidal positions, a readout of its own.
nlohmann::json train_transformer(const nlohmann::json& settings, const Split& split, int64_t layers,
                                 double decay, uint64_t seed);

/// D: convexified blocks end to end, which is not a convex problem. Tokens a / b =, learned
/// embeddings and positions. Inner layers X <- X + sum_j g_ij W1_j X w2_j w3_j', the last one
/// sum_j g_ij (w1_j' X w2_j) w3_j; attention weights are projected onto simplexes after every step,
/// and do not decay.
/// @param gates  "live": of the current X, without a gradient; "fixed": of the first embeddings.
/// Besides: "refits": the gated convex program on frozen features and gates of the last layer,
/// [{"update", "train", "test", "gap", "status", "seconds"}].
nlohmann::json train_blocks(const nlohmann::json& settings, const Split& split, int64_t layers,
                            double decay, const std::string& gates, uint64_t seed);

}  // namespace kktorch::convex
