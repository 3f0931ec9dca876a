#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

namespace fastmerge::cpu {
namespace {

// One parallel_for. The caller and the workers that join take indices until none is left.
struct Job {
  Job(std::size_t count, const std::function<void(std::size_t)>& task) : count(count), task(task) {}

  void work() {
    for (std::size_t i; (i = next.fetch_add(1)) < count;) {
      try {
        task(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next = count;
      }
    }
  }

  const std::size_t count;
  const std::function<void(std::size_t)>& task;
  std::atomic<std::size_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;
  int invitations = 0;  // workers that may still join; guarded by the pool's mutex, like `working`
  int working = 0;
};

class Pool {
 public:
  void run(Job& job, int threads) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job.invitations = threads - 1;
      while (workers_ < threads - 1) {
        std::thread(&Pool::serve, this).detach();
        ++workers_;
      }
      jobs_.push_back(&job);
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
    done_.wait(lock, [&] { return job.working == 0; });
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return !jobs_.empty(); });
      Job& job = *jobs_.front();
      if (--job.invitations == 0) jobs_.pop_front();
      ++job.working;
      lock.unlock();
      job.work();
      lock.lock();
      if (--job.working == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Job*> jobs_;
  int workers_ = 0;
};

// Never destroyed: the workers live as long as the process. A child of fork() has none of them, so it starts a new
// pool.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool = nullptr; });
  static_cast<void>(registered);
  Pool* current = pool;
  if (!current) {
    auto fresh = std::make_unique<Pool>();
    if (pool.compare_exchange_strong(current, fresh.get())) current = fresh.release();
  }
  return *current;
}

std::atomic<int> thread_count{0};

}  // namespace

void parallel_for(std::size_t count, int threads, const std::function<void(std::size_t)>& task) {
  Job job(count, task);
  const int useful = static_cast<int>(std::min<std::size_t>(static_cast<std::size_t>(threads), count));
  if (useful < 2) {
    job.work();
  } else {
    the_pool().run(job, useful);
  }
  if (job.error) std::rethrow_exception(job.error);
}

void parallel_ranges(std::size_t size, std::size_t grain, std::size_t least,
                     const std::function<void(std::size_t, std::size_t)>& task) {
  const std::size_t count = (size + grain - 1) / grain;
  parallel_for(count, size < least ? 1 : threads(),
               [&](std::size_t i) { task(i * grain, std::min(size, (i + 1) * grain)); });
}

int threads() {
  const int count = thread_count.load(std::memory_order_relaxed);
  return count ? count : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void set_threads(int count) { thread_count = count; }

}  // namespace fastmerge::cpu
