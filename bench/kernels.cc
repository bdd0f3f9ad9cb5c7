// The kernels against the limits of the machine, as Markdown: make bench-kernels, or build/bench/kernels with the options of kUsage.
//
// T(M) is the time of all weight matrices of one pass over M rows of a 1.1B Llama geometry, each in its own memory, far more than
// the caches hold. The last column says what share of a whole pass at a context of 2048 is anything else: attention, rotary
// positions, writing keys and values. No pass can be faster than max(P b / B, 2 P M / F): P weights of b bytes (scales included), the read bandwidth B and
// the rate F of the format's dot-product instruction, both measured between the repetitions.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <sstream>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "core/error.h"
#include "core/tensor.h"
#include "decode/rows.h"
#include "math/bfloat16.h"
#include "probes.h"

using namespace paceline;
using namespace paceline::bench;

namespace {

constexpr int kLayers = 22, kHidden = 2048, kHeads = 32, kKvHeads = 4, kHeadDim = 64, kIntermediate = 5632, kVocab = 32000, kContext = 2048;

constexpr const char* kUsage =
    "usage: kernels [--threads N] [--repetitions N] [--parts matrices,attention,sampling] [--dtypes bf16,int8,...] [--rows 1,8,...]\n"
    "\n"
    "  --threads N      computing threads, 1 to 1024 (default: one per core)\n"
    "  --repetitions N  of every measurement, interleaved, 1 to 10000 (default: 9)\n"
    "  --parts LIST     of matrices, attention, sampling (default: all)\n"
    "  --dtypes LIST    of fp32, bf16, int8, int4, int4_g32, for matrices (default: bf16,int8,int4)\n"
    "  --rows LIST      rows of a pass, 1 first and at most 512, for matrices (default: 1,2,3,4,6,8,12,16,32,64,128)\n";

struct Options {
  bool help = false;
  int threads = 0, repetitions = 9;
  std::vector<std::string> parts = {"matrices", "attention", "sampling"}, dtypes = {"bf16", "int8", "int4"};
  std::vector<int> rows = {1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128};
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

int number(const std::string& name, const std::string& text, int most) {
  size_t used = 0;
  int value = 0;
  try {
    value = std::stoi(text, &used);
  } catch (const std::exception&) {  // no number, or none that fits: used stays 0
  }
  require(used && used == text.size() && value >= 1 && value <= most, name, " must be in [1, ", most, "], got ", text);
  return value;
}

std::vector<std::string> some_of(const std::string& name, const std::string& text, const std::vector<std::string>& all) {
  std::string listed;
  for (const std::string& each : all) listed += (listed.empty() ? "" : ", ") + each;
  const auto parts = split(text);
  for (const std::string& part : parts)
    require(std::find(all.begin(), all.end(), part) != all.end(), name, " must be some of ", listed, ", got ", part);
  require(!parts.empty(), name, " must be some of ", listed, ", got nothing");
  return parts;
}

Options parsed(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--help" || name == "-h") return options.help = true, options;
    require(name == "--threads" || name == "--repetitions" || name == "--parts" || name == "--dtypes" || name == "--rows",
            "unknown option ", name);
    require(i + 1 < argc, name, " needs a value");
    const std::string value = argv[++i];
    if (name == "--threads") options.threads = number(name, value, 1024);
    if (name == "--repetitions") options.repetitions = number(name, value, 10000);
    if (name == "--parts") options.parts = some_of(name, value, {"matrices", "attention", "sampling"});
    if (name == "--dtypes") options.dtypes = some_of(name, value, {"fp32", "bf16", "int8", "int4", "int4_g32"});
    if (name == "--rows") {
      options.rows.clear();
      for (const auto& part : split(value)) options.rows.push_back(number(name, part, 512));
      require(!options.rows.empty() && options.rows[0] == 1, name, " must begin with 1, which the others are held against, got ", value);
    }
  }
  return options;
}

// Keys and values of every layer, each in its own memory, and rotary tables.
class Cache {
 public:
  Cache(Backend& backend, int context) : table_(context / kPagePositions), angles_(size_t(context) * kHeadDim / 2, 0.7f) {
    std::iota(table_.begin(), table_.end(), 0);
    for (int i = 0; i < kLayers; ++i)
      for (auto* plane : {&keys_, &values_}) plane->push_back(backend.allocate(bytes()));
  }
  size_t bytes() const { return table_.size() * kPagePositions * kKvHeads * kHeadDim * sizeof(bf16); }  // of a layer's keys, and of its values
  AttentionShape shape() const { return {kHeads, kKvHeads, kHeadDim, angles_.data(), angles_.data()}; }
  KvLayer layer(int i) const { return {keys_[i].as<void>(), values_[i].as<void>(), table_.data(), int(table_.size()), DType::bf16}; }

 private:
  std::vector<int32_t> table_;
  std::vector<float> angles_;
  std::vector<Buffer> keys_, values_;
};

// All weight matrices of the model in one format. Values are random once and the same in every layer: time does not depend on them.
class Matrices {
 public:
  Matrices(Backend& backend, DType dtype) : backend_(backend), cache_(backend, kContext), norm_(std::max(kHidden, kIntermediate), 1.0f) {
    std::mt19937 random(1);
    for (int i = 0; i < 1 << 20; ++i) values_.push_back(float(int(random() % 65536) - 32768) * 1e-6f);
    while (values_.size() < size_t(kVocab) * kHidden) values_.insert(values_.end(), values_.begin(), values_.begin() + (1 << 20));
    const int qkv = (kHeads + 2 * kKvHeads) * kHeadDim;
    for (int i = 0; i < kLayers; ++i) {
      qkv_.push_back(made(qkv, kHidden, dtype));
      output_.push_back(made(kHidden, kHeads * kHeadDim, dtype));
      gate_up_.push_back(made(2 * kIntermediate, kHidden, dtype));
      down_.push_back(made(kHidden, kIntermediate, dtype));
    }
    head_ = made(kVocab, kHidden, is_integer(dtype) ? DType::int8 : dtype);
  }

  size_t bytes() const { return bytes_; }
  double weights() const { return weights_; }

  // One pass of `count` rows at the end of a context, or, without one, its matrices alone.
  double seconds(int count, int context) {
    RowsBuffer buffer(backend_, count);
    std::vector<int32_t> zero(count, 0), position(count);
    std::iota(position.begin(), position.end(), std::max(context - count, 0));
    buffer.fill(zero, position, zero);
    const Rows rows = buffer.rows();
    x_.resize(size_t(count) * kVocab), y_.resize(size_t(count) * kVocab), qkv_out_.resize(size_t(count) * (kHeads + 2 * kKvHeads) * kHeadDim);
    for (size_t i = 0; i < size_t(count) * kIntermediate; ++i) x_[i] = float(int(i % 37) - 18) * 0.1f;
    const double start = now();
    for (int i = 0; i < kLayers; ++i) {
      if (context) {
        backend_.norm_qkv_rope_write(rows, x_.data(), kHidden, {qkv_[i].get(), norm_.data(), nullptr, nullptr, nullptr, 1e-5f}, cache_.shape(),
                                     cache_.layer(i), qkv_out_.data());
        backend_.attention(rows, qkv_out_.data(), cache_.shape(), cache_.layer(i), y_.data());
      } else {
        backend_.norm_head(rows, x_.data(), kHidden, norm_.data(), 1e-5f, *qkv_[i], (kHeads + 2 * kKvHeads) * kHeadDim, qkv_out_.data());
      }
      backend_.linear_residual(rows, x_.data(), kHeads * kHeadDim, *output_[i], nullptr, y_.data(), kHidden);
      backend_.norm_gate_up(rows, x_.data(), kHidden, norm_.data(), 1e-5f, *gate_up_[i], kIntermediate, y_.data());
      backend_.linear_residual(rows, x_.data(), kIntermediate, *down_[i], nullptr, y_.data(), kHidden);
    }
    backend_.norm_head(rows, x_.data(), kHidden, norm_.data(), 1e-5f, *head_, kVocab, y_.data());
    return now() - start;
  }

 private:
  std::unique_ptr<PackedMatrix> made(int n, int k, DType dtype) {
    auto matrix = backend_.new_matrix((n + 15) / 16, k, dtype);
    backend_.pack_weights(*matrix, {"random", DType::fp32, {n, k}, values_.data()}, 0, 1);
    bytes_ += matrix->bytes();
    weights_ += double(n) * k;
    return matrix;
  }

  Backend& backend_;
  Cache cache_;
  std::vector<float> values_, norm_, x_, y_, qkv_out_;
  std::vector<std::unique_ptr<PackedMatrix>> qkv_, output_, gate_up_, down_;
  std::unique_ptr<PackedMatrix> head_;
  size_t bytes_ = 0;
  double weights_ = 0;
};

void report(const std::string& name, Backend& backend, int threads, const Options& options) {
  const DType dtype = dtype_of(name);
  Matrices matrices(backend, dtype);
  const Bandwidth bandwidth(threads);
  std::vector<double> b, f;
  std::vector<std::vector<double>> t(options.rows.size()), whole(options.rows.size());
  for (int repetition = 0; repetition < options.repetitions; ++repetition)
    for (size_t i = 0; i < options.rows.size(); ++i) {
      b.push_back(bandwidth.measure());
      f.push_back(peak(dtype, threads));
      t[i].push_back(matrices.seconds(options.rows[i], 0));
      whole[i].push_back(matrices.seconds(options.rows[i], kContext));
    }
  const double B = median(b), F = median(f), P = matrices.weights(), gigabytes = double(matrices.bytes()) / 1e9;
  std::printf("\n**%s**: %.2f GB, B = %.1f GB/s, F = %.0f GFLOP/s\n\n", name.c_str(), gigabytes, B, F);
  std::printf("| M | T(M) ms | T(M)/T(1) | GB/s | GFLOP/s | limit ms | T over limit | else at 2k |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n");
  for (size_t i = 0; i < options.rows.size(); ++i) {
    const double seconds = median(t[i]), flops = 2 * P * options.rows[i] / 1e9;
    const double limit = std::max(gigabytes / B, F > 0 ? flops / F : 0);
    std::printf("| %d | %.2f | %.2f | %.1f | %.0f | %.2f | %.2f | %.1f %% |\n", options.rows[i], seconds * 1e3, seconds / median(t[0]),
                gigabytes / seconds, flops / seconds, limit * 1e3, seconds / limit, 100 * (1 - seconds / median(whole[i])));
  }
}

// Median seconds of body, after one call that warms up.
template <class Body>
double timed(int repetitions, Body body) {
  std::vector<double> seconds;
  for (int i = 0; i <= repetitions; ++i) {
    const double start = now();
    body();
    if (i > 0) seconds.push_back(now() - start);
  }
  return median(seconds);
}

// The attention of all layers, for rows at the end of a context.
void report_attention(Backend& backend, int threads, const Options& options) {
  const Bandwidth bandwidth(threads);
  std::printf("\n**attention**, all %d layers, bf16 keys and values, B = %.1f GB/s\n\n", kLayers, bandwidth.measure());
  std::printf("| context | M | ms | GB/s |\n| --- | --- | --- | --- |\n");
  for (int context : {128, 2048, 8192})
    for (int count : {1, 4, 8, 16}) {
      const Cache cache(backend, context);
      std::vector<int32_t> zero(count, 0), position(count);
      std::iota(position.begin(), position.end(), context - count);
      RowsBuffer rows(backend, count);
      rows.fill(zero, position, zero);
      std::vector<float> qkv(size_t(count) * (kHeads + 2 * kKvHeads) * kHeadDim, 0.1f), out(size_t(count) * kHeads * kHeadDim);
      const double seconds = timed(options.repetitions, [&] {
        for (int i = 0; i < kLayers; ++i) backend.attention(rows.rows(), qkv.data(), cache.shape(), cache.layer(i), out.data());
      });
      std::printf("| %d | %d | %.3f | %.1f |\n", context, count, seconds * 1e3, 2.0 * cache.bytes() * kLayers / seconds / 1e9);
    }
}

// Choosing one token, by one thread: processors and the draw.
void report_sampling(const Options& options) {
  const auto& kernels = *cpu::level_of("").sampling;
  std::printf("\n**sampling** of one row, one thread, logits of a normal law with deviation 3\n\n");
  std::printf("| vocabulary | greedy us | T = 1 us | T = 1, top-p 0.9 us | top-k 50 us |\n| --- | --- | --- | --- | --- |\n");
  for (int vocab : {32000, 128256, 152064}) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 3);
    std::vector<float> logits(vocab), scratch(vocab);
    std::vector<int32_t> counts(vocab, 0), history(1, 0);
    std::vector<uint64_t> histogram(2048);
    for (float& l : logits) l = normal(random);
    std::printf("| %d |", vocab);
    for (auto [temperature, top_p, top_k] : {std::tuple(0.0, 1.0, 0), {1.0, 1.0, 0}, {1.0, 0.9, 0}, {1.0, 1.0, 50}}) {
      SlotParams params{};
      params.temperature = temperature, params.top_p = top_p, params.top_k = top_k, params.repetition_penalty = 1, params.num_logprobs = -1;
      params.prompt_length = params.min_length = 1;
      uint32_t position = 1;
      const double seconds = timed(20 * options.repetitions, [&] {
        const ProcessedRow row = kernels.process({logits.data(), vocab, vocab, &params, history.data(), 1}, {scratch.data(), counts.data(), histogram.data()});
        kernels.choose(row, {7, position++, 0, Purpose::token, 0});
      });
      std::printf(" %.1f |", seconds * 1e6);
    }
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parsed(argc, argv);
  if (options.help) return std::fputs(kUsage, stdout), 0;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // every table as soon as it is done, in a file too
  const auto backend = make_cpu_backend(options.threads, "");
  const int threads = options.threads ? options.threads : int(std::thread::hardware_concurrency());
  std::printf("%s; 1.1B Llama geometry, medians of %d interleaved repetitions\n", backend->description().c_str(), options.repetitions);
  for (const std::string& part : options.parts) {
    if (part == "matrices")
      for (const std::string& name : options.dtypes) report(name, *backend, threads, options);
    if (part == "attention") report_attention(*backend, threads, options);
    if (part == "sampling") report_sampling(options);
  }
} catch (const std::invalid_argument& error) {
  std::fprintf(stderr, "kernels: %s\n%s", error.what(), kUsage);
  return 2;
} catch (const std::exception& error) {
  std::fprintf(stderr, "kernels: %s\n", error.what());
  return 1;
}
