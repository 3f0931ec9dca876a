// Finds accesses of two threads to one place in memory, one of them a write at least, that nothing orders. Kernels
// compiled with -fsanitize=thread call the functions at the end. They are these, not those of the sanitizer.
//
// In a block, barriers and exchanges of lanes order accesses. Between blocks, a fence before an atomic in the one does,
// and a fence after a later atomic in the other. Atomics may meet each other anywhere. Of every two bytes the last
// write and the last readings of two threads are known, so a race shows in most orders of threads, not in all.
#include <link.h>

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "cuda_runtime.h"
#include "emulator.h"

namespace races {
namespace {

enum Kind : std::uint8_t { kNone, kRead, kWrite, kAtomic };

// An access: by whom, and after how many releases and barriers of the block and exchanges of the warp.
struct Access {
  Kind kind;
  std::uint16_t thread, releases, barriers;
  unsigned block, meetings;
};

// What is known of two bytes. The readings are by different threads.
struct Memory {
  Access write, reads[2];
};
constexpr std::uintptr_t kGrain = 2, kPage = 1024;
using Page = std::array<Memory, kPage>;

std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages;
// The pages that were used last.
struct Recent {
  std::uintptr_t number;
  Page* page;
};
std::array<Recent, 256> recent;

std::vector<std::vector<unsigned>> meetings;      // per warp, the masks of its exchanges since the last barrier
std::vector<std::vector<unsigned>> all_releases;  // per block, the times of its atomics after fences
unsigned now;                                     // atomics after fences in this launch
unsigned observed, acquired;                      // of them, by this block: at its last atomic; at a fence after one
unsigned block;
std::uint16_t barriers;
bool fenced;

// Where the static and dynamic shared memory of blocks lies: the variables of this library that each host thread has.
struct Shared {
  std::uintptr_t begin = 0, size = 0;

  static int find(dl_phdr_info* info, std::size_t, void* result) {
    const auto here = reinterpret_cast<std::uintptr_t>(&now);
    Shared found;
    bool mine = false;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& part = info->dlpi_phdr[i];
      const std::uintptr_t begin = info->dlpi_addr + part.p_vaddr;
      if (part.p_type == PT_LOAD) mine |= begin <= here && here < begin + part.p_memsz;
      if (part.p_type == PT_TLS) found = {reinterpret_cast<std::uintptr_t>(info->dlpi_tls_data), part.p_memsz};
    }
    if (mine) *static_cast<Shared*>(result) = found;
    return mine;
  }
} shared;

bool is_shared(std::uintptr_t address) { return address - shared.begin < shared.size; }

bool ordered(const Access& before, const Access& next) {
  if (before.block != next.block) {
    const auto& releases = all_releases[before.block];
    return releases.size() > before.releases && releases[before.releases] <= acquired;
  }
  if (before.thread == next.thread || before.barriers < next.barriers) return true;
  if (before.thread / 32 != next.thread / 32) return false;
  const unsigned both = 1u << before.thread % 32 | 1u << next.thread % 32;
  const std::vector<unsigned>& masks = meetings[next.thread / 32];
  for (std::size_t i = masks.size(); i-- > before.meetings;) {
    if ((masks[i] & both) == both) return true;
  }
  return false;
}

void check(const Access& before, const Access& next, std::uintptr_t address) {
  if (before.kind == kNone || (before.kind == kAtomic && next.kind == kAtomic)) return;
  if (is_shared(address) && before.block != next.block) return;  // that block had its own
  if (ordered(before, next)) return;
  const auto name = [](const Access& access) {
    return "thread " + std::to_string(access.thread) + " of block " + std::to_string(access.block) +
           (access.kind == kRead ? " reads" : " writes");
  };
  emulator::fail("emulator: a race: " + name(next) + (is_shared(address) ? " shared" : " global") +
                 " memory, and nothing orders that with how " + name(before) + " it");
}

Page& page_of(std::uintptr_t number) {
  Recent& last = recent[number % recent.size()];
  if (last.page == nullptr || last.number != number) {
    std::unique_ptr<Page>& page = pages[number];
    if (!page) page.reset(new Page{});
    last = {number, page.get()};
  }
  return *last.page;
}

void access(const volatile void* address, std::size_t size, Kind kind) {
  if (!emulator::in_kernel() || emulator::on_stack(const_cast<const void*>(address))) return;
  const auto thread = static_cast<std::uint16_t>(emulator::thread());
  const Access next{kind,     thread, static_cast<std::uint16_t>(all_releases[block].size()),
                    barriers, block,  static_cast<unsigned>(meetings[thread / 32].size())};
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  for (std::uintptr_t at = begin / kGrain; at <= (begin + size - 1) / kGrain; ++at) {
    Memory& known = page_of(at / kPage)[at % kPage];
    check(known.write, next, begin);
    if (kind == kRead) {
      if (known.reads[0].thread != thread || known.reads[0].block != block) known.reads[1] = known.reads[0];
      known.reads[0] = next;
    } else {
      for (const Access& read : known.reads) check(read, next, begin);
      known = {next, {}};
    }
  }
}

template <class T>
void atomic(volatile T* address) {
  if (!emulator::in_kernel()) return;
  access(address, sizeof(T), kAtomic);
  if (fenced) all_releases[block].push_back(++now);
  fenced = false;
  observed = now;
}

}  // namespace

void begin_launch() {
  pages.clear();
  recent = {};
  all_releases.clear();
  now = 0;
  dl_iterate_phdr(&Shared::find, &shared);
}

void begin_block(unsigned warps) {
  block = static_cast<unsigned>(all_releases.size());
  all_releases.emplace_back();
  meetings.assign(warps, {});
  barriers = 0;
  observed = acquired = 0;
  fenced = false;
}

void barrier() {
  ++barriers;
  for (auto& masks : meetings) masks.clear();
}

void meeting(unsigned warp, unsigned mask) { meetings[warp].push_back(mask); }

void fence() {
  fenced = true;
  acquired = observed;
}

}  // namespace races

// ---- what g++ makes kernels call ----

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define FASTMERGE_ACCESSES(bytes)                                               \
  void __tsan_read##bytes(void* a) { races::access(a, bytes, races::kRead); }   \
  void __tsan_write##bytes(void* a) { races::access(a, bytes, races::kWrite); } \
  void __tsan_unaligned_read##bytes(void* a) { __tsan_read##bytes(a); }         \
  void __tsan_unaligned_write##bytes(void* a) { __tsan_write##bytes(a); }
FASTMERGE_ACCESSES(1)
FASTMERGE_ACCESSES(2)
FASTMERGE_ACCESSES(4)
FASTMERGE_ACCESSES(8)
FASTMERGE_ACCESSES(16)
void __tsan_read_range(void* a, std::size_t bytes) { races::access(a, bytes, races::kRead); }
void __tsan_write_range(void* a, std::size_t bytes) { races::access(a, bytes, races::kWrite); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Of the host: whether a static variable has its first value.
char __tsan_atomic8_load(const volatile char* a, int) { return __atomic_load_n(a, __ATOMIC_ACQUIRE); }

#define FASTMERGE_ATOMIC(bits, operation)                                                                             \
  std::uint##bits##_t __tsan_atomic##bits##_fetch_##operation(volatile std::uint##bits##_t* a, std::uint##bits##_t x, \
                                                              int) {                                                  \
    races::atomic(a);                                                                                                 \
    return __atomic_fetch_##operation(a, x, __ATOMIC_RELAXED);                                                        \
  }
FASTMERGE_ATOMIC(32, add)
FASTMERGE_ATOMIC(32, or)
FASTMERGE_ATOMIC(64, add)
}
