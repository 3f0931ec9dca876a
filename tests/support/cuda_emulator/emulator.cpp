// The threads behind the stand-in cuda_runtime.h: fibers, barriers and exchanges.
#include "emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda_pipeline.h"
#include "cuda_runtime.h"

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

namespace {
constexpr std::size_t kCanaryBytes = 4096;
constexpr unsigned char kPoison = 0xFF, kCanary = 0xA5;
}  // namespace

// The dynamic shared memory of the block that runs, and a canary after it.
thread_local uint4 fastmerge_shared[(emulator::kSharedBytes + kCanaryBytes) / sizeof(uint4)];

namespace emulator {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;

// The order in which blocks start, threads start, and threads go on that may: as they are numbered, or at random.
struct Order {
  bool random = false;
  std::mt19937 numbers;

  // One of `count` things that can be done next.
  std::size_t draw(std::size_t count) { return random ? numbers() % count : count - 1; }

  std::vector<unsigned> of(unsigned count) {
    std::vector<unsigned> all(count);
    std::iota(all.begin(), all.end(), 0u);
    if (random) std::shuffle(all.begin(), all.end(), numbers);
    return all;
  }
};

Order& order() {
  static thread_local Order one;
  return one;
}

// A context starts a fiber; after that jumps, which make no system call, enter and leave it.
struct Fiber {
  ucontext_t context;
  std::jmp_buf place;
  bool entered = false;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  unsigned thread = 0;
};

// What the lanes of one mask of a warp exchange: two rounds, since a fast lane may begin the next before a slow one has
// read the last.
struct Exchange {
  unsigned mask = 0, arrived = 0, round = 0;
  std::uint64_t values[2][32] = {};
  std::vector<Fiber*> waiting;
};

class Block {
 public:
  Block(unsigned threads, const std::function<void()>& body)
      : threads_(threads), live_(threads), body_(body), order_(order().of(threads)), warps_((threads + 31) / 32) {}

  void run() {
    for (;;) {
      Fiber* fiber = nullptr;
      const bool starts = started_ < threads_ && (ready_.empty() || order().draw(4) == 0);
      if (!starts && !ready_.empty()) {
        std::swap(ready_[order().draw(ready_.size())], ready_.back());
        fiber = ready_.back();
        ready_.pop_back();
      } else if (starts) {
        fiber = idle_fiber();
      } else if (live_ > 0) {
        throw std::runtime_error("emulator: the threads of a block wait for each other forever");
      } else {
        return;
      }
      enter(fiber);
      if (!error_.empty()) throw std::runtime_error(error_);
    }
  }

  void wait_for_block() {
    if (waiting_.size() + 1 == live_) {
      races::barrier();
      release(waiting_);
      return;
    }
    waiting_.push_back(current_);
    leave();
  }

  const std::uint64_t* exchange(unsigned mask, std::uint64_t value) {
    const unsigned lane = current_->thread % 32, warp = current_->thread / 32;
    const unsigned lanes = threads_ - 32 * warp;
    // Lanes beyond the block count as exited.
    const unsigned expected = lanes >= 32 ? mask : mask & ((1u << lanes) - 1);
    if (!(mask >> lane & 1u)) fail("emulator: a thread takes part in an exchange whose mask leaves it out");
    Exchange& e = exchange_of(warp, mask);
    const std::uint64_t* const result = e.values[e.round & 1u];
    e.values[e.round & 1u][lane] = value;
    e.arrived |= 1u << lane;
    if (e.arrived == expected) {
      e.arrived = 0;
      ++e.round;
      races::meeting(warp, mask);
      release(e.waiting);
    } else {
      e.waiting.push_back(current_);
      leave();
    }
    return result;
  }

  unsigned thread() const { return current_->thread; }
  bool on_stack(const void* address) const {
    const char* const at = static_cast<const char*>(address);
    return at >= current_->stack.get() && at < current_->stack.get() + kStackBytes;
  }

  [[noreturn]] void fail(const std::string& message) {
    error_ = message;
    for (;;) leave();
  }

 private:
  Exchange& exchange_of(unsigned warp, unsigned mask) {
    for (Exchange& e : warps_[warp]) {
      if (e.mask == mask) return e;
    }
    warps_[warp].emplace_back();
    warps_[warp].back().mask = mask;
    return warps_[warp].back();
  }

  static void main() {
    for (;;) active()->run_threads();
  }

  // Runs threads to their end, one after the other on this fiber, until one of them waits or none is left.
  void run_threads() {
    Fiber* const self = current_;
    while (started_ < threads_) {
      self->thread = order_[started_++];
      show(self);
      body_();
      --live_;
      if (live_ > 0 && waiting_.size() == live_) {
        races::barrier();
        release(waiting_);
      }
    }
    idle().push_back(self);
    leave();
  }

  Fiber* idle_fiber() {
    if (!idle().empty()) {
      Fiber* const fiber = idle().back();
      idle().pop_back();
      return fiber;
    }
    fibers().push_back(std::make_unique<Fiber>());
    prepare(fibers().back().get());
    return fibers().back().get();
  }

  static void prepare(Fiber* fiber) {
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStackBytes;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, &Block::main, 0);
  }

  void enter(Fiber* fiber) {
    current_ = fiber;
    show(fiber);
    if (_setjmp(scheduler()) != 0) return;
    if (fiber->entered) _longjmp(fiber->place, 1);
    fiber->entered = true;
    setcontext(&fiber->context);
  }

  void leave() {
    if (_setjmp(current_->place) == 0) _longjmp(scheduler(), 1);
  }

  void release(std::vector<Fiber*>& fibers) {
    ready_.insert(ready_.end(), fibers.begin(), fibers.end());
    fibers.clear();
  }

  static void show(const Fiber* fiber) {
    threadIdx = {fiber->thread % blockDim.x, fiber->thread / blockDim.x % blockDim.y,
                 fiber->thread / (blockDim.x * blockDim.y)};
  }

 public:
  static Block*& active() {
    static thread_local Block* block = nullptr;
    return block;
  }
  static std::vector<std::unique_ptr<Fiber>>& fibers() {
    static thread_local std::vector<std::unique_ptr<Fiber>> all;
    return all;
  }
  static std::vector<Fiber*>& idle() {
    static thread_local std::vector<Fiber*> some;
    return some;
  }

 private:
  static std::jmp_buf& scheduler() {
    static thread_local std::jmp_buf place;
    return place;
  }

  unsigned threads_, started_ = 0;
  std::size_t live_;
  const std::function<void()>& body_;
  const std::vector<unsigned> order_;
  std::vector<std::deque<Exchange>> warps_;
  std::vector<Fiber*> ready_, waiting_;
  Fiber* current_ = nullptr;
  std::string error_;
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

// Per thread of the block that runs: batches of copies that are on their way, the last one open.
std::vector<std::deque<std::vector<Copy>>>& copies() {
  static thread_local std::vector<std::deque<std::vector<Copy>>> all;
  return all;
}

void run_block(unsigned threads, std::size_t shared, const std::function<void()>& body) {
  unsigned char* const memory = reinterpret_cast<unsigned char*>(fastmerge_shared);
  std::memset(memory, kPoison, shared);
  std::memset(memory + shared, kCanary, kCanaryBytes);
  Block block(threads, body);
  copies().assign(threads, {});
  Block::active() = &block;
  races::begin_block((threads + 31) / 32);
  try {
    block.run();
    Block::active() = nullptr;
  } catch (...) {
    Block::active() = nullptr;
    // Its fibers are stuck in the middle of a kernel.
    Block::idle().clear();
    Block::fibers().clear();
    throw;
  }
  for (std::size_t i = 0; i < kCanaryBytes; ++i) {
    if (memory[shared + i] != kCanary) throw std::runtime_error("emulator: a write beyond the shared memory");
  }
}

}  // namespace

void run(dim3 grid, dim3 block, std::size_t shared, const std::function<void()>& body) {
  gridDim = grid;
  blockDim = block;
  races::begin_launch();
  for (const unsigned i : order().of(grid.x * grid.y * grid.z)) {
    blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    run_block(block.x * block.y * block.z, shared, body);
  }
}

namespace {

std::deque<std::vector<Copy>>& own_copies() {
  auto& own = copies()[thread()];
  if (own.empty()) own.emplace_back();
  return own;
}

}  // namespace

void begin_copy(void* to, const void* from, std::size_t bytes) {
  const auto misplaced = [&](const void* address) { return reinterpret_cast<std::uintptr_t>(address) % bytes != 0; };
  if ((bytes != 4 && bytes != 8 && bytes != 16) || misplaced(to) || misplaced(from)) {
    fail("emulator: a copy of 4, 8 or 16 bytes is not aligned to them");
  }
  own_copies().back().push_back({to, from, bytes});
}

void close_batch() { own_copies().emplace_back(); }

void arrive(std::size_t prior, void (*copy)(void* to, const void* from, std::size_t bytes)) {
  auto& own = own_copies();
  while (own.size() > prior + 1) {
    for (const Copy& each : own.front()) copy(each.to, each.from, each.bytes);
    own.pop_front();
  }
}

void wait_for_block() { Block::active()->wait_for_block(); }
const std::uint64_t* exchange(unsigned mask, std::uint64_t value) { return Block::active()->exchange(mask, value); }
void fence() { races::fence(); }
int lane() { return static_cast<int>(thread() % 32); }
bool in_kernel() { return Block::active() != nullptr; }
unsigned thread() { return Block::active()->thread(); }
bool on_stack(const void* address) { return Block::active()->on_stack(address); }
void fail(const std::string& message) { Block::active()->fail(message); }

}  // namespace emulator

void fastmerge_emulated_order(unsigned seed) {
  emulator::order().random = seed != 0;
  emulator::order().numbers.seed(seed);
}
