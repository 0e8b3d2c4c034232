#include "cpu/parallel.h"

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace mstar {
namespace {

class Pool {
 public:
  ~Pool() { resize(1); }

  int size() const { return size_.load(); }

  void resize(int num_threads) {
    std::lock_guard<std::mutex> one_caller(callers_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
    const std::uint64_t seen = generation_;
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, seen] { work(seen); });
    size_ = std::max(1, num_threads);
  }

  void run(std::int64_t count, const std::function<void(std::int64_t)>& task) {
    std::lock_guard<std::mutex> one_caller(callers_);
    if (workers_.empty() || count < 2) {
      for (std::int64_t i = 0; i < count; ++i) task(i);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      count_ = count;
      next_ = 0;
      error_ = nullptr;
      busy_ = static_cast<int>(workers_.size());
      ++generation_;
    }
    wake_.notify_all();
    take_tasks();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void work(std::uint64_t seen) {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
        if (stopping_) return;
        seen = generation_;
      }
      take_tasks();
      {
        std::lock_guard<std::mutex> lock(mutex_);
        --busy_;
      }
      done_.notify_one();
    }
  }

  void take_tasks() {
    for (std::int64_t i; (i = next_.fetch_add(1)) < count_;) {
      try {
        (*task_)(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
        next_ = count_;
      }
    }
  }

  std::mutex callers_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  std::atomic<int> size_{1};
  const std::function<void(std::int64_t)>* task_ = nullptr;
  std::int64_t count_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::exception_ptr error_;
  int busy_ = 0;
  std::uint64_t generation_ = 0;
  bool stopping_ = false;
};

Pool& pool() {
  static Pool* instance = new Pool;  // never destroyed: joining threads at interpreter exit can deadlock
  return *instance;
}

// The OpenMP runtime that is loaded already (torch's), if there is one: its threads spin for a while after torch's own
// loops, so a second pool would fight them for the cores. This library links none itself.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel loaded_openmp() {
#if __has_include(<dlfcn.h>)
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
  return nullptr;
#endif
}

struct Team {
  const std::function<void(std::int64_t)>& task;
  std::int64_t count;
  std::atomic<std::int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;

  void take_tasks() {
    for (std::int64_t i; (i = next.fetch_add(1)) < count;) {
      try {
        task(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!error) error = std::current_exception();
        next = count;
      }
    }
  }
};

std::atomic<int> wanted_threads{1};

}  // namespace

void set_num_threads(int num_threads) { wanted_threads = std::max(1, num_threads); }

int num_threads() { return wanted_threads; }

void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& task) {
  const int threads = wanted_threads;
  if (threads == 1 || count < 2) {
    for (std::int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  static const GompParallel openmp = loaded_openmp();
  if (openmp == nullptr) {
    if (pool().size() != threads) pool().resize(threads);
    pool().run(count, task);
    return;
  }
  Team team{task, count, {}, {}, {}};
  openmp([](void* argument) { static_cast<Team*>(argument)->take_tasks(); }, &team, static_cast<unsigned>(threads), 0);
  if (team.error) std::rethrow_exception(team.error);
}

}  // namespace mstar
