// Several engines of one process on one pool: who gets it when, what is left of it, and that nothing of it shows in the texts.
#include "backend/cpu/thread_pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_quota.h"
#include "cpp/test.h"
#include "cpp/tiny_models.h"
#include "cpp/watchdog.h"

using namespace paceline;
using namespace paceline::test;
using cpu::ThreadPool;

namespace {

#ifdef __SANITIZE_THREAD__
constexpr bool kThreadSanitizer = true;  // it lets no forked child start threads
#else
constexpr bool kThreadSanitizer = false;
#endif

int num_threads_here() {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) ++count;
  return count;
}

// A thread that was joined may take a moment to leave /proc.
bool settles_at(int threads) {
  for (int i = 0; i < 1000 && num_threads_here() != threads; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return num_threads_here() == threads;
}

void wait_until_waiting(const ThreadPool& pool, int count) {
  while (pool.num_waiting() != count) std::this_thread::yield();
}

using Text = std::vector<std::pair<int, float>>;  // token, logprob

// A sampled text per seed, by an engine of its own.
class Session {
 public:
  Session(std::shared_ptr<Backend> backend, unsigned seed) {
    const TinyShape shape;
    EngineOptions options;
    options.num_speculative_tokens = 3;
    options.max_model_len = 128;
    options.max_num_seqs = 2;
    options.kv_cache_tokens = 256;
    engine_ = std::make_unique<Engine>(backend, tiny_weights(backend, shape, DType::bf16, seed), tiny_weights(backend, shape, DType::bf16, seed, 0.15f), options);
  }
  Text text(uint64_t seed) {
    RequestParams params;
    params.max_tokens = 24;
    params.temperature = 0.9;
    params.seed = seed;
    params.logprobs = 0;
    engine_->add({int32_t(seed % 90), 3, 1, 4, 1, 5, 9}, params);
    Text text;
    while (!engine_->idle())
      for (const Output& output : engine_->step())
        for (size_t i = 0; i < output.tokens.size(); ++i) text.emplace_back(output.tokens[i], output.logprobs[i]);
    return text;
  }

 private:
  std::unique_ptr<Engine> engine_;
};

}  // namespace

TEST(engines_of_as_many_threads_share_them) {
  std::thread([] {}).join();  // a sanitizer starts one of its own with the first
  const int before = num_threads_here();
  {
    std::vector<std::shared_ptr<Backend>> backends;
    for (int i = 0; i < 4; ++i) {
      backends.push_back(make_cpu_backend(3, ""));
      CHECK(num_threads_here() == before + 2, num_threads_here() - before, " threads for ", i + 1, " engines of three");
    }
    const std::shared_ptr<Backend> other = make_cpu_backend(2, "");
    CHECK(num_threads_here() == before + 3, "another number of threads is another pool");
    backends.erase(backends.begin(), backends.begin() + 3);
    CHECK(num_threads_here() == before + 3, "the last one still has it");
    CHECK(cpu::shared_pool(0) == cpu::shared_pool(ThreadPool::usable_threads()));
  }
  CHECK(settles_at(before), num_threads_here() - before, " threads are left");
  make_cpu_backend(3, "").reset();
  CHECK(settles_at(before), "a pool that has gone is made again, and goes again");
}

TEST(engines_in_threads_give_the_texts_they_give_alone) {
  constexpr int kEngines = 3, kTexts = 4;
  for (int threads : {1, 2}) {
    std::vector<Text> alone(kEngines * kTexts), together(kEngines * kTexts);
    const auto decode = [&](int engine, std::vector<Text>& into) {
      Session session(make_cpu_backend(threads, ""), unsigned(engine + 1));
      for (int i = 0; i < kTexts; ++i) into[engine * kTexts + i] = session.text(uint64_t(10 * engine + i));
    };
    for (int engine = 0; engine < kEngines; ++engine) decode(engine, alone);
    within(120, "three engines", [&] {
      std::vector<std::thread> callers;
      for (int engine = 0; engine < kEngines; ++engine) callers.emplace_back([&, engine] { decode(engine, together); });
      for (std::thread& caller : callers) caller.join();
    });
    for (size_t i = 0; i < alone.size(); ++i) CHECK(alone[i].size() == 24 && together[i] == alone[i], threads, " threads, text ", i);
  }
}

TEST(turns_come_in_the_order_of_asking) {
  within(20, "turns", [] {
    constexpr int kCallers = 6, kRounds = 3;
    ThreadPool pool(2);
    std::vector<int> order;
    std::vector<std::thread> callers;
    {
      const ThreadPool::Turn first(pool);
      for (int i = 0; i < kCallers; ++i) {
        callers.emplace_back([&, i] {
          for (int round = 0; round < kRounds; ++round) {
            const ThreadPool::Turn turn(pool);
            order.push_back(i);
            if (round + 1 < kRounds) wait_until_waiting(pool, kCallers - 1);  // everybody asks again before it goes on
          }
        });
        wait_until_waiting(pool, i + 1);
      }
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(order.size() == kCallers * kRounds);
    for (size_t i = 0; i < order.size(); ++i) CHECK(order[i] == int(i % kCallers), "turn ", i, " went to ", order[i]);
  });
}

// Who gives a turn back and asks for the next at once comes after whoever has waited meanwhile: never twice in a row.
TEST(two_callers_in_a_loop_alternate) {
  within(20, "two callers", [] {
    struct Taken {
      int caller;
      bool other_waits;  // at the end of the turn
    };
    ThreadPool pool(2);
    std::vector<Taken> turns;
    const auto loop = [&](int caller) {
      for (int i = 0; i < 300; ++i) {
        const ThreadPool::Turn turn(pool);
        std::this_thread::sleep_for(std::chrono::microseconds(200));
        turns.push_back({caller, pool.num_waiting() > 0});
      }
    };
    std::thread other(loop, 1);
    loop(0);
    other.join();
    int met = 0;
    for (size_t i = 0; i + 1 < turns.size(); ++i) {
      if (!turns[i].other_waits) continue;
      CHECK(turns[i + 1].caller != turns[i].caller, "turn ", i + 1, " went to the same caller again, and the other waited");
      ++met;
    }
    CHECK(met > 30, "they met ", met, " times only");
  });
}

TEST(a_turn_nests_and_ends_with_its_outermost_part) {
  within(20, "a nested turn", [] {
    ThreadPool pool(2);
    std::atomic<bool> entered{false};
    std::jthread other;
    {
      const ThreadPool::Turn outer(pool);
      std::atomic<int> runs{0};
      for (int i = 0; i < 3; ++i) {
        const ThreadPool::Turn inner(pool);
        pool.run([&](int, int) { ++runs; });
      }
      CHECK(runs == 6);
      other = std::jthread([&] {
        const ThreadPool::Turn turn(pool);
        entered = true;
      });
      wait_until_waiting(pool, 1);
      pool.run([](int, int) {});
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      CHECK(!entered, "the turn was over before its outermost part");
    }
    other.join();
    CHECK(entered);
  });
}

TEST(a_turn_ends_when_its_work_throws) {
  within(20, "after an exception", [] {
    const std::shared_ptr<Backend> backend = make_cpu_backend(2, "");
    const auto fails = backend->capture([] { throw DeviceError("as planted"); });
    for (int i = 0; i < 2; ++i) CHECK_THROWS(fails->launch(), DeviceError, "as planted");
    try {
      const TurnScope turn(*backend);
      throw DeviceError("as planted");
    } catch (const DeviceError&) {
    }
    int ran = 0;
    const auto works = backend->capture([&] { ++ran; });
    std::thread([&] { works->launch(); }).join();
    CHECK(ran == 1);
  });
}

// Cycles and passes, not the operations inside them: those of another engine come before or after.
TEST(a_launch_is_one_turn) {
  within(20, "launches", [] {
    const std::shared_ptr<ThreadPool> pool = cpu::shared_pool(2);
    std::vector<int> order;  // of single runs; each within the pool, so that no two write at once
    const auto several = [&](int caller) {
      for (int i = 0; i < 5; ++i) {
        pool->run([&](int thread, int) {
          if (thread == 0) order.push_back(caller);
        });
        std::this_thread::yield();
      }
    };
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller)
      callers.emplace_back([&, caller] {
        const std::shared_ptr<Backend> backend = make_cpu_backend(2, "");
        const auto cycle = backend->capture([&] { several(caller); });
        for (int i = 0; i < 40; ++i) {
          if (i % 2) {
            cycle->launch();
          } else {
            const TurnScope pass(*backend);
            several(caller);
          }
        }
      });
    for (std::thread& caller : callers) caller.join();
    CHECK(order.size() == 3 * 40 * 5);
    for (size_t i = 0; i < order.size(); ++i) CHECK(order[i] == order[i / 5 * 5], "run ", i, " is another engine's");
  });
}

// Alone on its thread nobody has to wait for anybody.
TEST(callers_of_one_thread_compute_side_by_side) {
  within(20, "two callers at once", [] {
    const std::shared_ptr<Backend> backend = make_cpu_backend(1, "");
    std::atomic<int> inside{0};
    const auto meet = backend->capture([&] {
      for (++inside; inside < 2;) std::this_thread::yield();
    });
    std::thread other([&] { meet->launch(); });
    meet->launch();
    other.join();
  });
}

TEST(an_engine_may_go_while_another_runs) {
  within(120, "engines that come and go", [] {
    Session stays(make_cpu_backend(2, ""), 1);
    const Text want = stays.text(7);
    std::atomic<bool> stop{false};
    std::atomic<int> wrong{0}, decoded{0};
    std::thread other([&] {
      for (; !stop; ++decoded) wrong += stays.text(7) != want;
    });
    for (int i = 0; i < 20 || decoded < 3; ++i) {
      Session goes(make_cpu_backend(2, ""), 2);
      if (i % 3 == 0) goes.text(5);
    }
    stop = true;
    other.join();
    CHECK(wrong == 0, wrong.load(), " texts");
  });
}

// The child of a fork has the forking thread only. Its turn may have been another's, and its workers are not there.
TEST(a_forked_child_is_told_and_can_build_anew) {
  std::shared_ptr<Backend> backend = make_cpu_backend(2, "");
  std::shared_ptr<ThreadPool> pool = cpu::shared_pool(2);
  std::atomic<bool> held{false}, done{false};
  std::thread holder([&] {
    const ThreadPool::Turn turn(*pool);
    held = true;
    while (!done) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  while (!held) std::this_thread::yield();
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // ends a child that hangs
    int told = 0;
    try {
      pool->run([](int, int) {});
    } catch (const EngineDead&) {
      told += 1;
    }
    try {
      backend->capture([] {})->launch();
    } catch (const EngineDead&) {
      told += 2;
    }
    if (kThreadSanitizer) _exit(told == 3 ? 7 : told);
    std::atomic<int> ran{0};
    {
      const std::shared_ptr<ThreadPool> fresh = cpu::shared_pool(2);
      fresh->run([&](int, int) { ++ran; });
    }
    backend.reset();
    pool.reset();  // the last who had it: its workers cannot be waited for
    _exit(told == 3 && ran == 2 ? 7 : told);
  }
  int status = 0;
  waitpid(child, &status, 0);
  done = true;
  holder.join();
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
  std::atomic<int> ran{0};
  pool->run([&](int, int) { ++ran; });
  CHECK(ran == 2, "the parent goes on");
}

// Workers spin for tens of microseconds after their last run, then sleep: of 200 ms without work they take no tenth.
TEST(an_idle_pool_takes_no_core) {
  ThreadPool pool(4);
  const auto spent = [] {
    timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
  };
  pool.run([](int, int) {});
  usleep(20000);
  const double before = spent();
  usleep(200000);
  CHECK(spent() - before < 0.02, spent() - before, " s of 0.2");
}

// Groups as both versions write them: the least quota of a group and those that it is in, rounded up.
TEST(a_control_group_s_quota_is_respected) {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / message("paceline-quota-", getpid());
  const auto put = [&](const char* file, const char* text) {
    fs::create_directories((root / file).parent_path());
    std::ofstream(root / file) << text;
  };
  const auto quota = [&] { return cpu::cpu_quota(root.string() + "/self", root.string() + "/groups"); };
  CHECK(quota() == 0, "nothing is there");
  put("self/cgroup", "0::/a/b\n");
  CHECK(quota() == 0, "no such group");
  put("groups/cpu.max", "max 100000\n");
  CHECK(quota() == 0, quota());
  put("groups/a/b/cpu.max", "250000 100000\n");
  CHECK(quota() == 3, quota());
  put("groups/a/cpu.max", "150000 100000\n");
  CHECK(quota() == 2, "the group above has less: ", quota());
  put("self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/jobs/one\n0::/\n");
  CHECK(quota() == 0, quota());
  put("groups/cpu/jobs/one/cpu.cfs_quota_us", "-1\n"), put("groups/cpu/jobs/one/cpu.cfs_period_us", "100000\n");
  CHECK(quota() == 0, quota());
  put("groups/cpu/jobs/one/cpu.cfs_quota_us", "50000\n");
  CHECK(quota() == 1, quota());
  put("self/cgroup", "3:cpuset:/jobs/one\nnothing of the kind\n:\n");
  CHECK(quota() == 0, quota());
  fs::remove_all(root);
}

TEST_MAIN()
