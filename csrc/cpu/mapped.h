// Files of the page cache, seen in place.
#pragma once

#include <cstddef>

namespace fastmerge::cpu {

// A mapping of a whole file, to be read. What is no longer in the file, or cannot be read, reads as zeros, and `broken`
// says so from then on, in place of the signal (SIGBUS) that would end the process.
class MappedFile {
 public:
  // Throws std::system_error where the file cannot be mapped, or too many are.
  MappedFile(int fd, std::size_t nbytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool broken() const;
  // Takes a range out of this process's memory, until it is read again.
  void forget(std::size_t offset, std::size_t nbytes) const;

 private:
  char* data_;
  std::size_t size_, watch_;
};

}  // namespace fastmerge::cpu
