// measure [--answer] FILE COMMAND [ARGUMENT...]: runs the command, appends to FILE how many seconds it took, how
// many of them a processor, and the most memory it had in KiB, and exits with its code. With --answer also how many
// seconds it took until the first byte was on standard output, which passes through this program then.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(struct timeval time) { return time.tv_sec + time.tv_usec / 1e6; }

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

static int fail(const char *what) {
  perror(what);
  return 71;
}

int main(int count, char **arguments) {
  int answer = count > 1 && strcmp(arguments[1], "--answer") == 0;
  char **words = arguments + answer, *file_name = words[1];
  struct rusage usage;
  int status, output[2];
  if (count - answer < 3) return 64;
  if (answer && pipe(output) != 0) return fail("measure: pipe");
  double start = now(), first = -1;
  pid_t pid = fork();
  if (pid == 0) {
    if (answer) {
      dup2(output[1], 1);
      close(output[0]);
      close(output[1]);
    }
    execvp(words[2], words + 2);
    perror(words[2]);
    _exit(127);
  }
  if (pid < 0) return fail("measure: fork");
  if (answer) {
    char buffer[4096];
    ssize_t length;
    close(output[1]);
    while ((length = read(output[0], buffer, sizeof buffer)) > 0) {
      if (first < 0) first = now() - start;
      if (write(1, buffer, length) != length) return fail("measure: standard output");
    }
  }
  if (wait4(pid, &status, 0, &usage) != pid) return fail("measure: wait4");
  double wall = now() - start;
  FILE *file = fopen(file_name, "a");
  if (!file) {
    perror(file_name);
    return 74;
  }
#ifdef __APPLE__
  usage.ru_maxrss /= 1024;
#endif
  fprintf(file, "%.6f %.6f %ld", wall, seconds(usage.ru_utime) + seconds(usage.ru_stime), usage.ru_maxrss);
  if (answer) fprintf(file, " %.6f", first);
  fprintf(file, "\n");
  fclose(file);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
