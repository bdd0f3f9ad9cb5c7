// Every forward operation against its oracle in double (tests/reference), on every instruction level of this machine, in fp32
// and bf16, over the shapes where loops end: one row to several tiles, widths off the grid of 16, contexts around the ends
// of pages and of page groups. Tolerances come from the oracles themselves. Bits are the business of invariance_test.
#include <sched.h>
#include <xmmintrin.h>

#include <atomic>
#include <filesystem>
#include <set>

#include "backend/cpu/thread_pool.h"
#include "cpp/forward_pieces.h"
#include "cpp/test.h"
#include "reference/attention.h"
#include "reference/linear.h"
#include "reference/norm.h"

using namespace paceline;
using namespace paceline::test;
using reference::Near;

namespace {

constexpr float kEps = 0.05f;  // large enough to be missed
constexpr float kUntouched = 1234.5f;  // what memory holds that nobody may write

// body(backend, dtype, where) for every level, dtype and some thread counts.
template <class Body>
void everywhere(Body body) {
  for (const std::string& level : levels())
    for (DType dtype : {DType::fp32, DType::bf16})
      for (int threads : {1, 3}) body(*backend_of(level, threads), dtype, message(level, " ", name_of(dtype), ", ", threads, " threads"));
}

// `count` live rows of slot 0 in buffers that could hold three more.
RowsBuffer rows_of(Backend& backend, int count, int first_position = 0) {
  RowsBuffer rows(backend, count + 3);
  std::vector<int32_t> position(count), zero(count, 0);
  std::iota(position.begin(), position.end(), first_position);
  rows.fill(zero, position, zero);
  return rows;
}

// Activations as they enter a product.
std::vector<Near> entering(std::vector<Near> x, DType dtype) {
  if (dtype == DType::bf16)
    for (Near& v : x) v = reference::nearest_bf16(v);
  return x;
}
std::vector<Near> exact(const float* x, int n) {
  std::vector<Near> all;
  for (int i = 0; i < n; ++i) all.push_back(reference::exactly(x[i]));
  return all;
}

void check_row(const float* got, const std::vector<Near>& want, const std::string& where) {
  for (size_t i = 0; i < want.size(); ++i)
    CHECK(reference::agrees(got[i], want[i]), where, ", column ", i, ": got ", got[i], ", expected ", want[i].value, " +- ",
          want[i].error);
}

// [rows, columns] that hold kUntouched, with a guard row behind.
struct Output {
  int rows, columns;
  std::vector<float> values;
  Output(int rows, int columns) : rows(rows), columns(columns), values(size_t(rows + 1) * columns, kUntouched) {}
  float* data() { return values.data(); }
  const float* row(int r) const { return values.data() + size_t(r) * columns; }
  void check_guard(const std::string& where) const {
    for (int i = 0; i < columns; ++i) CHECK(row(rows)[i] == kUntouched, where, ": wrote beyond the live rows");
  }
};

struct Shape {
  int rows, n, k;
};
const std::vector<Shape> kShapes = {{1, 16, 16},  {1, 5, 2},    {2, 33, 48},  {3, 130, 31}, {4, 64, 64},   {5, 100, 80},  {6, 17, 256},
                                    {7, 96, 33},  {8, 48, 192}, {9, 272, 40}, {12, 31, 64}, {16, 80, 128}, {17, 161, 50}, {33, 40, 2050}};

struct AttentionCase {
  int heads, kv_heads, head_dim;
};
const std::vector<AttentionCase> kAttentionCases = {{1, 1, 8}, {2, 1, 48}, {4, 2, 64}, {3, 3, 80}, {8, 1, 128}, {2, 2, 256}, {40, 1, 2}};

}  // namespace

TEST(matrices_hold_what_their_dtype_says) {
  // Halves of fp16: subnormal, largest, ties; fp32 values on and beside the ties of bf16.
  const std::vector<uint16_t> halves = {0x0000, 0x8000, 0x0001, 0x03ff, 0x0400, 0x3c00, 0x3c04, 0x3c0c, 0x7bff, 0xfbff, 0x3555, 0xb555};
  std::vector<float> floats;
  for (uint32_t high : {0x3f80u, 0x3f81u, 0xc2f7u, 0x0080u, 0x7f7eu})
    for (uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) floats.push_back(float_from_bits(high << 16 | low));
  for (const std::string& level : levels())
    for (DType dtype : {DType::fp32, DType::bf16})
      for (DType source : {DType::fp32, DType::bf16, DType::fp16})
        for (int d : {1, 6, 7}) {
          Backend& backend = *backend_of(level, 2);
          const int n = 37;
          std::vector<double> want(n * d);
          std::vector<char> memory(n * d * size_of(source));
          for (int i = 0; i < n * d; ++i) {
            const float value = source == DType::fp16 ? from_fp16(halves[i % halves.size()]) : floats[i % floats.size()];
            if (source == DType::fp32) std::memcpy(memory.data() + i * 4, &value, 4);
            const bf16 cut = bf16(bits_of(value) >> 16);
            if (source == DType::bf16) std::memcpy(memory.data() + i * 2, &cut, 2);
            if (source == DType::fp16) std::memcpy(memory.data() + i * 2, &halves[i % halves.size()], 2);
            want[i] = held(source == DType::bf16 ? from_bf16(cut) : value, dtype);
          }
          auto matrix = backend.new_matrix(3, d, dtype);
          backend.pack_weights(*matrix, {"table", source, {n, d}, memory.data()}, 0, 1);
          RowsBuffer rows(backend, n);
          std::vector<int32_t> zero(n, 0), token(n);
          for (int i = 0; i < n; ++i) token[i] = (i * 5) % n;
          rows.fill(zero, zero, token);
          Output out(n, d);
          backend.embed(rows.rows(), *matrix, d, out.data());
          for (int r = 0; r < n; ++r)
            for (int i = 0; i < d; ++i)
              CHECK(out.row(r)[i] == want[token[r] * d + i], level, " ", name_of(source), " to ", name_of(dtype), ": got ",
                    out.row(r)[i], ", expected ", want[token[r] * d + i]);
          out.check_guard(level);
        }
}

TEST(linear_residual) {
  everywhere([](Backend& backend, DType dtype, const std::string& level) {
    for (const Shape& s : kShapes)
      for (bool biased : {false, true}) {
        const std::string where = message(level, ", rows ", s.rows, ", N ", s.n, ", K ", s.k, biased ? ", bias" : "");
        const RandomMatrix w(s.n, s.k, 1);
        const auto matrix = packed(backend, dtype, w);
        const std::vector<float> in = random_values(size_t(s.rows) * s.k, 2), before = random_values(size_t(s.rows) * s.n, 3);
        std::vector<float> bias = random_values(padded(s.n), 4);
        Output x(s.rows, s.n);
        std::copy(before.begin(), before.end(), x.values.begin());
        const RowsBuffer rows = rows_of(backend, s.rows);
        backend.linear_residual(rows.rows(), in.data(), s.k, *matrix, biased ? bias.data() : nullptr, x.data(), s.n);
        for (int r = 0; r < s.rows; ++r) {
          std::vector<Near> want = reference::linear(w.held_as(dtype), s.n, s.k, entering(exact(&in[size_t(r) * s.k], s.k), dtype));
          for (int i = 0; i < s.n; ++i) {
            if (biased) want[i] = want[i] + reference::exactly(bias[i]);
            want[i] = want[i] + reference::exactly(before[size_t(r) * s.n + i]);
          }
          check_row(x.row(r), want, message(where, ", row ", r));
        }
        x.check_guard(where);
      }
  });
}

TEST(norm_gate_up_and_norm_head) {
  everywhere([](Backend& backend, DType dtype, const std::string& level) {
    for (const Shape& s : kShapes) {
      const std::string where = message(level, ", rows ", s.rows, ", N ", s.n, ", K ", s.k);
      const RandomMatrix gate(s.n, s.k, 1), up(s.n, s.k, 2);
      const auto pair = packed_in_turns(backend, dtype, gate, up), head = packed(backend, dtype, gate);
      const std::vector<float> x = random_values(size_t(s.rows) * s.k, 3, 4), norm = random_values(s.k, 5, 0.3f, 1);
      const RowsBuffer rows = rows_of(backend, s.rows);
      Output gated(s.rows, s.n), logits(s.rows, s.n);
      backend.norm_gate_up(rows.rows(), x.data(), s.k, norm.data(), kEps, *pair, s.n, gated.data());
      backend.norm_head(rows.rows(), x.data(), s.k, norm.data(), kEps, *head, s.n, logits.data());
      for (int r = 0; r < s.rows; ++r) {
        const auto in = entering(reference::rms_norm(exact(&x[size_t(r) * s.k], s.k), norm.data(), kEps), dtype);
        const auto gates = reference::linear(gate.held_as(dtype), s.n, s.k, in), ups = reference::linear(up.held_as(dtype), s.n, s.k, in);
        std::vector<Near> want;
        for (int i = 0; i < s.n; ++i) want.push_back(reference::gated(gates[i], ups[i]));
        check_row(gated.row(r), want, message(where, ", gated row ", r));
        check_row(logits.row(r), gates, message(where, ", head row ", r));
      }
      gated.check_guard(where);
      logits.check_guard(where);
    }
  });
}

TEST(norm_qkv_rope_write) {
  everywhere([](Backend& backend, DType dtype, const std::string& level) {
    for (const AttentionCase& a : kAttentionCases)
      for (bool qk_norm : {false, true}) {
        const int d = 40, rows_count = 5, dh = a.head_dim, first = 62;  // rows straddle a page's end
        const std::string where = message(level, ", heads ", a.heads, "/", a.kv_heads, " x ", dh, qk_norm ? ", qk norm" : "");
        const RandomMatrix q(a.heads * dh, d, 1), k(a.kv_heads * dh, d, 2), v(a.kv_heads * dh, d, 3);
        const auto matrix = packed_in_line(backend, dtype, {&q, &k, &v});
        const int k_column = padded(q.n), v_column = k_column + padded(k.n), columns = v_column + padded(v.n);
        const std::vector<float> x = random_values(size_t(rows_count) * d, 4), norm = random_values(d, 5, 0.3f, 1);
        const std::vector<float> bias = random_values(columns, 6);
        const std::vector<float> q_norm = random_values(dh, 7, 0.3f, 1), k_norm = random_values(dh, 8, 0.3f, 1);
        const RopeTables rope(70, dh);
        const AttentionShape shape{a.heads, a.kv_heads, dh, rope.cosines.data(), rope.sines.data()};
        Pages pages(backend, 2, 128, a.kv_heads, dh, dtype, 9);
        const RowsBuffer rows = rows_of(backend, rows_count, first);
        Output qkv(rows_count, columns);
        const QkvWeights weights{matrix.get(), norm.data(), bias.data(), qk_norm ? q_norm.data() : nullptr, qk_norm ? k_norm.data() : nullptr, kEps};
        backend.norm_qkv_rope_write(rows.rows(), x.data(), d, weights, shape, pages.layer(), qkv.data());
        for (int r = 0; r < rows_count; ++r) {
          const int position = first + r;
          const float *cosines = &rope.cosines[size_t(position) * (dh / 2)], *sines = &rope.sines[size_t(position) * (dh / 2)];
          const auto in = entering(reference::rms_norm(exact(&x[size_t(r) * d], d), norm.data(), kEps), dtype);
          const auto heads_of = [&](const RandomMatrix& w, int column, const float* head_norm, bool turn) {
            std::vector<std::vector<Near>> heads;
            const auto all = reference::linear(w.held_as(dtype), w.n, d, in);
            for (int head = 0; head < w.n / dh; ++head) {
              std::vector<Near> one;
              for (int i = 0; i < dh; ++i) one.push_back(all[head * dh + i] + reference::exactly(bias[column + head * dh + i]));
              if (head_norm) one = reference::rms_norm(one, head_norm, kEps);
              heads.push_back(turn ? reference::rotated(one, cosines, sines) : one);
            }
            return heads;
          };
          const auto queries = heads_of(q, 0, qk_norm ? q_norm.data() : nullptr, true);
          for (int head = 0; head < a.heads; ++head)
            check_row(qkv.row(r) + head * dh, queries[head], message(where, ", q row ", r, ", head ", head));
          auto keys = heads_of(k, k_column, qk_norm ? k_norm.data() : nullptr, true), values = heads_of(v, v_column, nullptr, false);
          for (int head = 0; head < a.kv_heads; ++head)
            for (int i = 0; i < dh; ++i) {
              const Near key = entering({keys[head][i]}, dtype)[0], value = entering({values[head][i]}, dtype)[0];
              CHECK(reference::agrees(pages.key(0, position, head, i), key), where, ", key ", i, " of row ", r);
              CHECK(reference::agrees(pages.value(0, position, head, i), value), where, ", value ", i, " of row ", r);
              for (int beside : {first - 1, first + rows_count})
                CHECK(pages.key(0, beside, head, i) == 0 && pages.value(0, beside, head, i) == 0, where);
              CHECK(pages.key(1, position, head, i) == 0 && pages.value(1, position, head, i) == 0, where, ": wrote into another slot");
            }
        }
        qkv.check_guard(where);
      }
  });
}

TEST(attention) {
  everywhere([](Backend& backend, DType dtype, const std::string& level) {
    for (const AttentionCase& a : kAttentionCases)
      for (int context : {1, 2, 63, 64, 65, 511, 512, 513, 1100}) {
        const int dh = a.head_dim, rows_count = std::min(context, 1 + (context + dh) % 7), q_size = a.heads * dh;
        if (context == 1100 && dh == 2) continue;
        const std::string where = message(level, ", heads ", a.heads, "/", a.kv_heads, " x ", dh, ", context ", context);
        Pages pages(backend, 2, context, a.kv_heads, dh, dtype, 3);
        pages.fill_with_nan();  // nothing but [0, position] of slot 1 may be used
        const std::vector<float> k = random_values(size_t(context) * a.kv_heads * dh, 1), v = random_values(k.size(), 2);
        for (int p = 0; p < context; ++p)
          for (int head = 0; head < a.kv_heads; ++head) {
            const size_t at = (size_t(p) * a.kv_heads + head) * dh;
            pages.write(1, p, head, &k[at], &v[at]);
          }
        const int stride = padded(q_size) + 2 * padded(a.kv_heads * dh);
        const std::vector<float> qkv = random_values(size_t(rows_count) * stride, 4, 2);
        RowsBuffer rows(backend, rows_count);
        std::vector<int32_t> position(rows_count), slot(rows_count, 1);
        std::iota(position.begin(), position.end(), context - rows_count);
        rows.fill(slot, position, slot);
        Output out(rows_count, q_size);
        backend.attention(rows.rows(), qkv.data(), {a.heads, a.kv_heads, dh, nullptr, nullptr}, pages.layer(), out.data());
        for (int head = 0; head < a.heads; head += std::max(1, a.heads / 3)) {
          const int kv_head = head / (a.heads / a.kv_heads);
          std::vector<std::vector<double>> keys, values;
          for (int p = 0; p < context; ++p) {
            keys.emplace_back(), values.emplace_back();
            for (int i = 0; i < dh; ++i) keys[p].push_back(pages.key(1, p, kv_head, i)), values[p].push_back(pages.value(1, p, kv_head, i));
          }
          for (int r = rows_count - 1; r >= 0; --r) {
            keys.resize(position[r] + 1), values.resize(position[r] + 1);
            const auto q = entering(exact(&qkv[size_t(r) * stride + head * dh], dh), dtype);
            check_row(out.row(r) + head * dh, reference::attention(q, keys, values, dtype == DType::fp32 ? 0 : kPageGroup * kPagePositions), message(where, ", row ", r, ", head ", head));
          }
        }
        out.check_guard(where);
      }
  });
}

TEST(a_pass_without_rows_writes_nothing) {
  everywhere([](Backend& backend, DType dtype, const std::string& where) {
    const RandomMatrix w(48, 16, 1);
    const auto matrix = packed(backend, dtype, w);
    const RowsBuffer rows = rows_of(backend, 0);
    const std::vector<float> ones(256, 1);
    Pages pages(backend, 1, 64, 1, 16, dtype, 1);
    const AttentionShape shape{1, 1, 16, ones.data(), ones.data()};
    Output out(4, 48);
    backend.embed(rows.rows(), *matrix, 16, out.data());
    const QkvWeights weights{matrix.get(), ones.data(), nullptr, nullptr, nullptr, kEps};
    backend.norm_qkv_rope_write(rows.rows(), ones.data(), 16, weights, shape, pages.layer(), out.data());
    backend.attention(rows.rows(), ones.data(), shape, pages.layer(), out.data());
    backend.linear_residual(rows.rows(), ones.data(), 16, *matrix, nullptr, out.data(), 48);
    backend.norm_gate_up(rows.rows(), ones.data(), 16, ones.data(), kEps, *matrix, 24, out.data());
    backend.norm_head(rows.rows(), ones.data(), 16, ones.data(), kEps, *matrix, 48, out.data());
    for (float v : out.values) CHECK(v == kUntouched, where);
    for (size_t i = 0; i < pages.keys.bytes(); ++i) CHECK(pages.keys.as<char>()[i] == 0 && pages.values.as<char>()[i] == 0, where);
  });
}

TEST(copied_pages_hash_alike_and_every_bit_counts) {
  for (DType dtype : {DType::fp32, DType::bf16}) {
    Backend& backend = *backend_of("", 1);
    const AttentionShape shape{2, 2, 6, nullptr, nullptr};
    Pages pages(backend, 2, 128, 2, 6, dtype, 5);
    const std::vector<float> k = random_values(6, 1), v = random_values(6, 2);
    for (int head : {0, 1}) pages.write(0, 70, head, &k[0], &v[0]);
    const uint64_t before = backend.hash_kv(pages.layer(), shape, 0, 70);
    CHECK(before != backend.hash_kv(pages.layer(), shape, 1, 70));
    CHECK(before != backend.hash_kv(pages.layer(), shape, 0, 71));
    backend.copy_pages(pages.layer(), shape, &pages.table[1], &pages.table[3], 1);  // second page of slot 0 to that of slot 1
    CHECK(before == backend.hash_kv(pages.layer(), shape, 1, 70));
    for (int head : {0, 1})
      for (int i = 0; i < 6; ++i)
        for (int part = 0; part < 2; ++part) {
          std::vector<float> changed_k = k, changed_v = v;
          (part ? changed_v : changed_k)[i] *= -1;
          pages.write(0, 70, head, changed_k.data(), changed_v.data());
          CHECK(before != backend.hash_kv(pages.layer(), shape, 0, 70), "head ", head, ", element ", i);
          pages.write(0, 70, head, &k[0], &v[0]);
        }
    CHECK(before == backend.hash_kv(pages.layer(), shape, 0, 70));
  }
}

TEST(the_float_mode_is_ours_inside_and_the_caller_s_afterwards) {
  const unsigned callers = _mm_getcsr(), odd = 0x3f80;  // round down, subnormals kept
  _mm_setcsr(odd);
  cpu::ThreadPool pool(3);
  unsigned inside[3] = {};
  pool.run([&](int thread, int) { inside[thread] = _mm_getcsr(); });
  const unsigned after = _mm_getcsr();
  _mm_setcsr(callers);
  CHECK(after == odd, after);
  for (unsigned mode : inside) CHECK((mode & ~0x3fu) == 0x9fc0, mode);
}

TEST(the_pool_runs_every_thread_once_and_its_barrier_holds) {
  for (int threads : {1, 2, 3, 8}) {
    cpu::ThreadPool pool(threads);
    CHECK(pool.num_threads() == threads);
    std::vector<int> seen(threads), late(threads);
    std::atomic<int> arrived{0};
    for (int round = 1; round <= 300; ++round) {
      arrived = 0;
      pool.run([&](int thread, int num_threads) {
        seen[thread] += num_threads == threads;
        for (int step = 1; step <= 3; ++step) {
          arrived.fetch_add(1);
          pool.barrier();
          late[thread] += arrived.load() < step * threads;
          pool.barrier();
        }
      });
      if (round % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // let the workers fall asleep
    }
    for (int thread = 0; thread < threads; ++thread) CHECK(seen[thread] == 300 && late[thread] == 0, threads, " threads");
  }
  CHECK(cpu::ThreadPool(0).num_threads() == cpu::ThreadPool::usable_threads());
}

cpu_set_t only(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  return one;
}

cpu_set_t cores_of(int thread) {
  cpu_set_t set;
  CHECK(sched_getaffinity(thread, sizeof set, &set) == 0);
  return set;
}

std::vector<int> list_of(const cpu_set_t& set) {
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

// The core of each thread of the pool when a caller that keeps to `cpu` runs it.
std::vector<int> cores_when_called_on(int cpu, cpu::ThreadPool& pool) {
  std::vector<int> cpu_of(pool.num_threads());
  const cpu_set_t own = only(cpu);
  cpu_set_t after = {};
  std::thread caller([&] {
    sched_setaffinity(0, sizeof own, &own);
    pool.run([&](int thread, int) { cpu_of[thread] = sched_getcpu(); });
    sched_getaffinity(0, sizeof after, &after);
  });
  caller.join();
  CHECK(CPU_EQUAL(&after, &own), "the caller's affinity is the caller's");
  return cpu_of;
}

// On one core the pool has nobody to pin; then the test says less.
TEST(a_pool_of_all_cores_gives_each_thread_one_wherever_the_caller_goes) {
  const std::vector<int> cpus = list_of(cores_of(0));
  cpu::ThreadPool pool(int(cpus.size()));
  for (int round = 0; round < 20; ++round)
    for (int cpu : cpus) {
      const std::vector<int> cpu_of = cores_when_called_on(cpu, pool);
      CHECK(cpu_of[0] == cpu);
      CHECK(std::set<int>(cpu_of.begin(), cpu_of.end()).size() == cpu_of.size(), "caller on core ", cpu);
    }
}

// From outside, as taskset -ap does it: all threads to the same cores, be it one of them, whose worker already has just that, or all.
TEST(a_pool_whose_threads_are_placed_by_others_leaves_them_there) {
  const cpu_set_t all = cores_of(0);
  std::vector<cpu_set_t> placements = {all};
  for (int cpu : list_of(all)) placements.push_back(only(cpu));
  for (const cpu_set_t& placement : placements) {
    cpu::ThreadPool pool(CPU_COUNT(&all));
    cores_when_called_on(list_of(all)[0], pool);
    std::vector<int> threads;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) threads.push_back(std::stoi(entry.path().filename()));
    for (int thread : threads) sched_setaffinity(thread, sizeof placement, &placement);
    for (int round = 0; round < 2; ++round)
      for (int cpu : list_of(placement)) cores_when_called_on(cpu, pool);
    for (int thread : threads) {
      const cpu_set_t now = cores_of(thread);
      CHECK(CPU_EQUAL(&now, &placement), CPU_COUNT(&placement), " cores given, ", CPU_COUNT(&now), " found");
    }
    sched_setaffinity(0, sizeof all, &all);
  }
}

TEST(an_unknown_level_or_thread_count_is_refused_by_name) {
  CHECK_THROWS(make_cpu_backend(1, "avx1024"), std::invalid_argument, "avx2");
  CHECK_THROWS(make_cpu_backend(1, "avx1024"), std::invalid_argument, "got avx1024");
  CHECK_THROWS(make_cpu_backend(-1, ""), std::invalid_argument, "num_threads");
  setenv("PACELINE_CPU_LEVEL", "sse2", 1);
  CHECK_THROWS(make_cpu_backend(1, ""), std::invalid_argument, "got sse2");
  CHECK(make_cpu_backend(1, "avx2")->description().find("avx2") != std::string::npos);
  unsetenv("PACELINE_CPU_LEVEL");
}

TEST_MAIN()
