// What the tests run in containers: one static program, told by its first argument what to do.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static void pause_ms(long ms) {
    struct timespec t = { ms / 1000, ms % 1000 * 1000000 };
    nanosleep(&t, NULL);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    long n = argc > 2 ? atol(argv[2]) : 0;
    long m = argc > 3 ? atol(argv[3]) : 0;
    if (!strcmp(what, "lines")) { // n lines on each output, as fast as it goes
        for (long i = 0; i < n; i++) {
            printf("out %ld\n", i);
            fprintf(stderr, "err %ld\n", i);
        }
        return 0;
    }
    if (!strcmp(what, "exit")) return n;
    if (!strcmp(what, "sleep")) { // n ms, then exit m
        pause_ms(n);
        return m;
    }
    if (!strcmp(what, "cat")) {
        char buffer[4096];
        ssize_t got;
        while ((got = read(0, buffer, sizeof buffer)) > 0)
            if (write(1, buffer, got) != got) return 1;
        return 0;
    }
    if (!strcmp(what, "ticks")) { // n lines, one each m ms
        for (long i = 0; i < n; i++) {
            printf("%ld\n", i);
            fflush(stdout);
            pause_ms(m);
        }
        return 0;
    }
    if (!strcmp(what, "background")) { // ends at once, or with m after a byte of input; a child speaks after n ms
        char byte;
        if (m && read(0, &byte, 1) != 1) return 1;
        puts("parent");
        fflush(stdout);
        if (fork() == 0) {
            pause_ms(n);
            puts("child");
        }
        return 0;
    }
    if (!strcmp(what, "prompt")) {
        printf("name? ");
        fflush(stdout);
        pause_ms(n);
        return 0;
    }
    if (!strcmp(what, "tty")) {
        printf("tty %d%d%d\n", isatty(0), isatty(1), isatty(2));
        return 0;
    }
    if (!strcmp(what, "signals")) { // blocked signals, then ignored ones
        sigset_t blocked;
        sigprocmask(SIG_SETMASK, NULL, &blocked);
        for (int s = 1; s < 64; s++) {
            struct sigaction action;
            if (sigismember(&blocked, s) == 1) printf("blocked %d\n", s);
            if (sigaction(s, NULL, &action) == 0 && action.sa_handler == SIG_IGN) printf("ignored %d\n", s);
        }
        puts("clean");
        return 0;
    }
    if (!strcmp(what, "environment")) { // its size
        size_t size = 0;
        for (char **variable = environ; *variable; variable++) size += strlen(*variable);
        printf("%zu\n", size);
        return 0;
    }
    if (!strcmp(what, "reopen")) { // writes to its output by path
        FILE *out = fopen("/proc/self/fd/1", "w");
        if (!out) return 1;
        fputs("by path\n", out);
        return fclose(out) ? 2 : 0;
    }
    if (!strcmp(what, "numbers")) { // for each byte of input, n lines of eight bytes that count on
        char byte;
        for (long next = 0; read(0, &byte, 1) == 1;) {
            for (long i = 0; i < n; i++) printf("%07ld\n", next++);
            fflush(stdout);
        }
        return 0;
    }
    if (!strcmp(what, "streams")) { // for a first byte of input, n lines on each output, then the end
        char byte;
        if (read(0, &byte, 1) != 1) return 1;
        for (long i = 0; i < n; i++) {
            printf("out %ld\n", i);
            fprintf(stderr, "err %ld\n", i);
        }
        return 0;
    }
    if (!strcmp(what, "size")) { // of the terminal, at once and after each change
        sigset_t changes;
        sigemptyset(&changes);
        sigaddset(&changes, SIGWINCH);
        sigprocmask(SIG_BLOCK, &changes, NULL);
        for (int s;; sigwait(&changes, &s)) {
            struct winsize size;
            if (ioctl(0, TIOCGWINSZ, &size)) return 1;
            printf("%d %d\n", size.ws_col, size.ws_row);
            fflush(stdout);
        }
    }
    if (!strcmp(what, "quiet")) { // lives on without outputs for n ms
        close(1);
        close(2);
        pause_ms(n);
        return 0;
    }
    if (!strcmp(what, "nofile")) {
        struct rlimit files;
        if (getrlimit(RLIMIT_NOFILE, &files)) return 1;
        printf("%ld %ld\n", (long)files.rlim_cur, (long)files.rlim_max);
        return 0;
    }
    return 99;
}
