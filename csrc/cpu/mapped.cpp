#include "mapped.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>
#include <system_error>

namespace fastmerge::cpu {
namespace {

constexpr std::uintptr_t kPage = 4096;

// What the handler looks at: nothing that a lock or an allocation is needed for.
struct Watch {
  std::atomic<bool> used{false}, broken{false};
  std::atomic<std::uintptr_t> begin{0}, end{0};
};
std::array<Watch, 4096> watches;

struct sigaction before;
std::mutex installing;

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const std::uintptr_t at = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Watch& watch : watches) {
    if (at < watch.begin || at >= watch.end) continue;
    const int error = errno;
    void* page = reinterpret_cast<void*>(at / kPage * kPage);
    const bool placed = ::mmap(page, kPage, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
    errno = error;
    if (!placed) break;
    watch.broken = true;
    return;
  }
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  } else {
    ::sigaction(signal, &before, nullptr);  // what raised it does so again
  }
}

// Takes the signal; others, such as Python's faulthandler, may have taken it meanwhile, and get what is not ours.
void install() {
  const std::lock_guard<std::mutex> lock(installing);
  struct sigaction current{};
  ::sigaction(SIGBUS, nullptr, &current);
  if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_bus_error) return;
  before = current;
  struct sigaction ours{};
  ours.sa_sigaction = on_bus_error;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  ::sigaction(SIGBUS, &ours, nullptr);
}

}  // namespace

MappedFile::MappedFile(int fd, std::size_t nbytes) : size_(nbytes), watch_(0) {
  while (watch_ < watches.size() && watches[watch_].used.exchange(true)) ++watch_;
  if (watch_ == watches.size()) throw std::system_error(ENFILE, std::generic_category());
  Watch& watch = watches[watch_];
  void* mapping = ::mmap(nullptr, nbytes, PROT_READ, MAP_SHARED, fd, 0);
  if (mapping == MAP_FAILED) {
    const int error = errno;
    watch.used = false;
    throw std::system_error(error, std::generic_category());
  }
  data_ = static_cast<char*>(mapping);
  watch.broken = false;
  watch.begin = reinterpret_cast<std::uintptr_t>(data_);  // before the end: never wider than the mapping
  watch.end = watch.begin + (nbytes + kPage - 1) / kPage * kPage;
  install();
}

MappedFile::~MappedFile() {
  Watch& watch = watches[watch_];
  watch.end = 0;  // before its addresses can become those of something else
  watch.begin = 0;
  ::munmap(data_, size_);
  watch.used = false;
}

bool MappedFile::broken() const { return watches[watch_].broken; }

void MappedFile::forget(std::size_t offset, std::size_t nbytes) const {
  const std::size_t first = offset / kPage * kPage;
  ::madvise(data_ + first, std::min(size_, offset + nbytes) - first, MADV_DONTNEED);
}

}  // namespace fastmerge::cpu
