// Reads files by direct I/O before they are asked for: large aligned requests, several at a time, on threads of its
// own.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace fastmerge::cpu {

// A file, open twice: with O_DIRECT and without.
struct AheadFile {
  int direct, plain;
  std::uint64_t nbytes;
};

struct AheadRange {
  std::size_t file;
  std::uint64_t offset, nbytes;
};

// The ranges of a group are read in turns, `step` bytes of each. The order is that in which `read` will ask; it may ask
// in another one, or for other bytes, and gets them then from the file itself.
//
// Files are read by blocks, of which a ring of buffers holds a few. A block stays in its buffer until all bytes of it
// that are planned near each other were asked for.
class ReadAhead {
 public:
  ReadAhead(std::vector<AheadFile> files, std::vector<std::vector<AheadRange>> groups, std::uint64_t step,
            std::size_t block, std::size_t buffers, std::size_t threads);
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // Copies bytes of a file to `into`; false where the file could not be read, which the caller finds out for itself.
  // Any number of threads may call.
  bool read(std::size_t file, std::uint64_t offset, std::uint64_t nbytes, char* into);

  // Ends the reading ahead; what is under way comes to its end first. `read` must not be called any more.
  void stop();

  // Bytes that `read` took out of buffers.
  std::uint64_t served();

 private:
  enum class State { kQueued, kLoading, kReady, kFailed };

  // A block that is read, for the bytes of it that are planned within a short time.
  struct Visit {
    std::pair<std::size_t, std::uint64_t> place;  // file, block
    std::uint64_t number;
    std::uint64_t expected = 0, taken = 0;  // bytes
    State state = State::kQueued;
    char* buffer = nullptr;
    int users = 0;
  };
  using Shared = std::shared_ptr<Visit>;
  using Lock = std::unique_lock<std::mutex>;

  void serve();
  void plan();
  void load(const Shared& visit, char* buffer, Lock& lock);
  bool take(const AheadRange& part, char* into);
  void release(const Shared& visit, std::uint64_t nbytes);
  void forget(const Shared& visit);
  void evict();

  const std::vector<AheadFile> files_;
  const std::vector<std::vector<AheadRange>> groups_;
  const std::uint64_t step_, block_;
  const std::size_t buffers_;
  char* memory_;
  std::size_t mapped_;

  std::mutex mutex_;
  std::condition_variable free_changed_, loaded_;
  std::size_t group_ = 0, range_ = 0;
  std::uint64_t start_ = 0, planned_ = 0, front_ = 0, served_ = 0;
  std::deque<Shared> queue_;
  std::map<std::pair<std::size_t, std::uint64_t>, Shared> live_;
  std::vector<char*> free_;
  bool over_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace fastmerge::cpu
