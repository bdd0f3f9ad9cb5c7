// The request's processors as the documentation defines them, slowly and in double: logits and history in, the law of the next
// token out. Shares no code with the engine.
#pragma once

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "decode/request.h"

namespace paceline::reference {

// Processed logits of the ids [0, vocab_limit); -inf = cannot be chosen. tokens = prompt and everything after it.
inline std::vector<double> processed_logits(const float* logits, int vocab_limit, const RequestParams& p, const std::vector<int>& tokens,
                                            int prompt_length) {
  std::vector<double> l(logits, logits + vocab_limit);
  if (int(tokens.size()) < prompt_length + p.min_tokens)
    for (int id : p.stop_token_ids) l[id] = -INFINITY;
  for (const auto& [id, bias] : p.logit_bias) l[id] = float(l[id]) + float(bias);
  const float repetition = float(p.repetition_penalty), frequency = float(p.frequency_penalty), presence = float(p.presence_penalty);
  for (int id : std::set<int>(tokens.begin(), tokens.end()))
    if (id < vocab_limit) l[id] = l[id] > 0 ? float(l[id]) / repetition : float(l[id]) * repetition;
  for (int id = 0; id < vocab_limit; ++id) {
    const auto count = std::count(tokens.begin() + prompt_length, tokens.end(), id);
    if (count) l[id] = (float(l[id]) - frequency * float(count)) - presence;
  }
  return l;
}

// What top-k, top-p and min-p leave of exp(l / T), normalised; T = 0 is certain of the best.
inline std::vector<double> law(const std::vector<double>& l, const RequestParams& p) {
  const int n = int(l.size());
  const double best = *std::max_element(l.begin(), l.end());
  std::vector<double> weight(n, 0.0);
  if (p.temperature == 0) {
    weight[std::max_element(l.begin(), l.end()) - l.begin()] = 1;
    return weight;
  }
  for (int i = 0; i < n; ++i) weight[i] = std::exp((l[i] - best) / p.temperature);
  const auto drop = [&](auto&& survives) {
    const std::vector<double> before = weight;
    for (int i = 0; i < n; ++i)
      if (!survives(i, before)) weight[i] = 0;
  };
  const auto strictly_more = [&](int i) { return std::count_if(l.begin(), l.end(), [&](double x) { return x > l[i]; }); };
  if (p.top_k > 0) drop([&](int i, const auto&) { return strictly_more(i) < p.top_k; });
  if (p.top_p < 1) drop([&](int i, const std::vector<double>& left) {
    double total = 0, greater = 0;
    for (int j = 0; j < n; ++j) total += left[j], greater += l[j] > l[i] ? left[j] : 0;
    return greater < p.top_p * total;
  });
  if (p.min_p > 0) drop([&](int i, const auto&) { return (l[i] - best) / p.temperature >= std::log(p.min_p); });
  double total = 0;
  for (double w : weight) total += w;
  for (double& w : weight) w /= total;
  return weight;
}

}  // namespace paceline::reference
