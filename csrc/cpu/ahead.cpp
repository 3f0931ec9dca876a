#include "ahead.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>

namespace fastmerge::cpu {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kPage = 4096;

// Reads up to `nbytes`, fewer only at the end of the file; returns how many, or -1.
std::int64_t read_all(int fd, char* into, std::uint64_t nbytes, std::uint64_t offset) {
  std::uint64_t done = 0;
  while (done < nbytes) {
    const ssize_t got = ::pread(fd, into + done, nbytes - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -1;
    if (got == 0) break;
    done += static_cast<std::uint64_t>(got);
    if (done % kPage) break;  // direct reads end in the middle of a page only where the file does
  }
  return static_cast<std::int64_t>(done);
}

}  // namespace

ReadAhead::ReadAhead(std::vector<AheadFile> files, std::vector<std::vector<AheadRange>> groups, std::uint64_t step,
                     std::size_t block, std::size_t buffers, std::size_t threads)
    : files_(std::move(files)), groups_(std::move(groups)), step_(step), block_(block), buffers_(buffers) {
  // A direct read pins the pages that it fills: of huge ones there are few.
  mapped_ = block_ * buffers_ + kHugePage;
  void* mapping = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(mapping);
  ::madvise(memory_, mapped_, MADV_HUGEPAGE);
  char* first = memory_ + (kHugePage - reinterpret_cast<std::uintptr_t>(memory_) % kHugePage) % kHugePage;
  for (std::size_t i = buffers_; i-- > 0;) free_.push_back(first + i * block_);
  plan();
  try {
    while (threads_.size() < threads) threads_.emplace_back(&ReadAhead::serve, this);
  } catch (const std::system_error&) {
    // No more threads than the system has: callers read, too.
  }
}

ReadAhead::~ReadAhead() {
  stop();
  ::munmap(memory_, mapped_);
}

void ReadAhead::stop() {
  {
    const Lock lock(mutex_);
    over_ = true;
  }
  free_changed_.notify_all();
  loaded_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

std::uint64_t ReadAhead::served() {
  const Lock lock(mutex_);
  return served_;
}

// Queues blocks until enough are known to tell which bytes of the next ones are wanted. Called with the lock held.
void ReadAhead::plan() {
  while (queue_.size() < 2 * buffers_ && group_ < groups_.size()) {
    const std::vector<AheadRange>& group = groups_[group_];
    if (range_ == group.size()) {
      range_ = 0;
      start_ += step_;
      if (std::none_of(group.begin(), group.end(), [&](const AheadRange& r) { return start_ < r.nbytes; })) {
        ++group_;
        start_ = 0;
      }
      continue;
    }
    const AheadRange& range = group[range_++];
    if (start_ >= range.nbytes) continue;
    const std::uint64_t end = range.offset + std::min(start_ + step_, range.nbytes);
    for (std::uint64_t at = range.offset + start_; at < end;) {
      const std::uint64_t stop = std::min(end, (at / block_ + 1) * block_);
      const std::pair<std::size_t, std::uint64_t> place(range.file, at / block_);
      Shared& visit = live_[place];
      if (!visit || visit->state == State::kFailed) {
        visit = std::make_shared<Visit>();
        visit->place = place;
        visit->number = planned_++;
        queue_.push_back(visit);
      }
      visit->expected += stop - at;
      at = stop;
    }
  }
}

void ReadAhead::serve() {
  Lock lock(mutex_);
  for (;;) {
    plan();
    while (!over_ && !queue_.empty() && free_.empty()) {
      free_changed_.wait(lock);
      plan();
    }
    if (over_ || queue_.empty()) return;
    const Shared visit = queue_.front();
    queue_.pop_front();
    char* buffer = free_.back();
    free_.pop_back();
    load(visit, buffer, lock);
  }
}

// Reads a block into a buffer. Called with the lock held, which is let go meanwhile.
void ReadAhead::load(const Shared& visit, char* buffer, Lock& lock) {
  visit->state = State::kLoading;
  visit->buffer = buffer;
  ++visit->users;
  const AheadFile file = files_[visit->place.first];
  const std::uint64_t begin = visit->place.second * block_;
  const std::uint64_t wanted = begin < file.nbytes ? std::min(block_, file.nbytes - begin) : 0;
  lock.unlock();
  const std::uint64_t pages = (wanted + kPage - 1) / kPage * kPage;
  const bool whole = wanted && read_all(file.direct, buffer, pages, begin) >= static_cast<std::int64_t>(wanted);
  lock.lock();
  visit->state = whole ? State::kReady : State::kFailed;
  loaded_.notify_all();
  release(visit, 0);
}

// Ends a use, in which so many bytes were taken. Called with the lock held.
void ReadAhead::release(const Shared& visit, std::uint64_t nbytes) {
  --visit->users;
  visit->taken += nbytes;
  if (nbytes) front_ = std::max(front_, visit->number);
  if (visit->users == 0 && (visit->state == State::kFailed || visit->taken >= visit->expected)) forget(visit);
  evict();
}

// Called with the lock held.
void ReadAhead::forget(const Shared& visit) {
  const auto found = live_.find(visit->place);
  if (found != live_.end() && found->second == visit) live_.erase(found);
  if (visit->buffer) {
    free_.push_back(visit->buffer);
    visit->buffer = nullptr;
    free_changed_.notify_one();
  }
}

// Gives up blocks that were passed by: their bytes were read otherwise. Called with the lock held.
void ReadAhead::evict() {
  if (!free_.empty()) return;
  std::vector<Shared> passed;
  for (const auto& item : live_) {
    const Visit& visit = *item.second;
    if (visit.state == State::kReady && visit.users == 0 && visit.number + 4 * buffers_ < front_) {
      passed.push_back(item.second);
    }
  }
  for (const Shared& visit : passed) forget(visit);
}

bool ReadAhead::read(std::size_t file, std::uint64_t offset, std::uint64_t nbytes, char* into) {
  const std::uint64_t end = offset + nbytes;
  if (end > files_.at(file).nbytes) return false;
  for (std::uint64_t at = offset; at < end;) {
    const std::uint64_t stop = std::min(end, (at / block_ + 1) * block_);
    if (!take({file, at, stop - at}, into + (at - offset)) &&
        read_all(files_[file].plain, into + (at - offset), stop - at, at) != static_cast<std::int64_t>(stop - at)) {
      return false;
    }
    at = stop;
  }
  return true;
}

// Copies a part of one block out of its buffer, once it is there; false where it will not be.
bool ReadAhead::take(const AheadRange& part, char* into) {
  Lock lock(mutex_);
  const auto found = live_.find({part.file, part.offset / block_});
  if (found == live_.end()) return false;
  const Shared visit = found->second;
  if (visit->state == State::kQueued) {
    if (free_.empty() || over_) {
      // All buffers hold what comes later: the caller reads these bytes.
      visit->taken += part.nbytes;
      if (visit->taken >= visit->expected) {
        queue_.erase(std::find(queue_.begin(), queue_.end(), visit));
        forget(visit);
      }
      return false;
    }
    queue_.erase(std::find(queue_.begin(), queue_.end(), visit));
    char* buffer = free_.back();
    free_.pop_back();
    ++visit->users;
    load(visit, buffer, lock);
  } else {
    ++visit->users;
    loaded_.wait(lock, [&] { return visit->state != State::kLoading || over_; });
  }
  const bool ready = visit->state == State::kReady;
  if (ready) {
    served_ += part.nbytes;
    lock.unlock();
    std::memcpy(into, visit->buffer + part.offset % block_, part.nbytes);
    lock.lock();
  }
  release(visit, part.nbytes);
  return ready;
}

}  // namespace fastmerge::cpu
