/*
 * The one program of the node tests' images: many small commands in a static executable, so that an image needs no
 * shell and no library. Commands are separated by a single "," and run one after another:
 *
 *     tool print hello , sleep 0.5 , exit 3
 *
 * A command that fails says "error: <command>: <reason>" on stderr and ends the program with 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static int term_code;

static void fail(const char *command) {
    int saved = errno;
    fflush(stdout);
    fprintf(stderr, "error: %s: %s\n", command, strerror(saved));
    exit(1);
}

static void nap(double seconds) {
    struct timespec left = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    while (nanosleep(&left, &left) && errno == EINTR) {}
}

static void on_term(int number) {
    (void)number;
    _exit(term_code);
}

/* An orphan of the container becomes a child of its first process, which is often this program. */
static void reap(int number) {
    (void)number;
    int saved = errno;
    while (waitpid(-1, NULL, WNOHANG) > 0) {}
    errno = saved;
}

static void copy(const char *path) {
    char buffer[65536];
    ssize_t n;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail(path);
    fflush(stdout);
    while ((n = read(fd, buffer, sizeof buffer)) > 0)
        if (write(1, buffer, n) != n) fail("write");
    if (n < 0) fail(path);
    close(fd);
}

static void put(const char *path, const char *text, int flags) {
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644);
    if (fd < 0) fail(path);
    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text)) fail(path);
    close(fd);
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static void list(const char *path) {
    struct dirent **names;
    int n = scandir(path, &names, NULL, by_name);
    if (n < 0) fail(path);
    for (int i = 0; i < n; i++)
        if (strcmp(names[i]->d_name, ".") && strcmp(names[i]->d_name, "..")) puts(names[i]->d_name);
}

static void describe(const char *path) {
    struct stat s;
    if (lstat(path, &s)) fail(path);
    const char *kind = S_ISDIR(s.st_mode) ? "dir" : S_ISREG(s.st_mode) ? "file" : S_ISLNK(s.st_mode) ? "link"
        : S_ISCHR(s.st_mode) ? "char" : S_ISBLK(s.st_mode) ? "block" : S_ISFIFO(s.st_mode) ? "fifo" : "socket";
    printf("%s %04o %d:%d %u:%u\n", kind, s.st_mode & 07777, s.st_uid, s.st_gid, major(s.st_rdev), minor(s.st_rdev));
}

static void identity(void) {
    gid_t groups[256];
    int n = getgroups(256, groups);
    printf("uid=%d gid=%d groups=", getuid(), getgid());
    for (int i = 0; i < n; i++) printf("%s%d", i ? "," : "", groups[i]);
    puts("");
}

static void descriptors(void) {
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    if (!dir) fail("fds");
    while ((entry = readdir(dir))) {
        char path[300], target[4096];
        int fd = atoi(entry->d_name);
        if (entry->d_name[0] == '.' || fd == dirfd(dir)) continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(path, target, sizeof target - 1);
        target[n < 0 ? 0 : n] = 0;
        printf("%d %s\n", fd, target);
    }
    closedir(dir);
}

static void namespaces(void) {
    const char *kinds[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"};
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char path[64], target[128];
        snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
        ssize_t n = readlink(path, target, sizeof target - 1);
        if (n < 0) fail(path);
        target[n] = 0;
        puts(target);
    }
}

static void status_lines(char **keys, int n) {
    char line[4096];
    FILE *file = fopen("/proc/self/status", "r");
    if (!file) fail("status");
    while (fgets(line, sizeof line, file))
        for (int i = 0; i < n; i++)
            if (!strncmp(line, keys[i], strlen(keys[i])) && line[strlen(keys[i])] == ':') fputs(line, stdout);
    fclose(file);
}

static void processes(void) {
    DIR *dir = opendir("/proc");
    struct dirent *entry;
    if (!dir) fail("procs");
    while ((entry = readdir(dir))) {
        char path[300], name[64] = "";
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
        snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (fgets(name, sizeof name, file)) name[strcspn(name, "\n")] = 0;
        fclose(file);
        printf("%s %s\n", entry->d_name, name);
    }
    closedir(dir);
}

/* Answers every connection with one line and closes it. */
static void serve(int port) {
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct utsname host;
    int on = 1, off = 0, door = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    uname(&host);
    if (door < 0) fail("socket");
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(door, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(door, (struct sockaddr *)&here, sizeof here) || listen(door, 64)) fail("listen");
    printf("listening\n");
    fflush(stdout);
    for (;;) {
        int guest = accept4(door, NULL, NULL, SOCK_CLOEXEC);
        if (guest < 0) continue;
        dprintf(guest, "hello from %s\n", host.nodename);
        shutdown(guest, SHUT_WR);
        char rest[64];
        while (read(guest, rest, sizeof rest) > 0) {}
        close(guest);
    }
}

static void call(const char *address, int port) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int is_v4 = inet_pton(AF_INET, address, &v4.sin_addr) == 1;
    struct timeval limit = {5, 0};
    char buffer[4096];
    ssize_t n;
    if (!is_v4 && inet_pton(AF_INET6, address, &v6.sin6_addr) != 1) { errno = EINVAL; fail(address); }
    int fd = socket(is_v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(fd, is_v4 ? (void *)&v4 : (void *)&v6, is_v4 ? sizeof v4 : sizeof v6)) fail("connect");
    while ((n = read(fd, buffer, sizeof buffer)) > 0) fwrite(buffer, 1, n, stdout);
    if (n < 0) fail("connect");
    close(fd);
}

static void eat(size_t bytes) {
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("eat");
    for (size_t i = 0; i < bytes; i += 4096) memory[i] = 1;
}

static void spawn_sleepers(int n, double seconds) {
    fflush(stdout);
    for (int i = 0; i < n; i++) {
        pid_t child = fork();
        if (child < 0) fail("fork");
        if (!child) {
            setsid();
            nap(seconds);
            _exit(0);
        }
    }
}

static void terminal(void) {
    struct winsize size = {0};
    printf("%d %d %d", isatty(0), isatty(1), isatty(2));
    if (!ioctl(0, TIOCGWINSZ, &size)) printf(" %dx%d", size.ws_col, size.ws_row);
    puts("");
}

/* Waits until the terminal has this size. */
static void await_size(int columns, int rows) {
    struct winsize size = {0};
    while (ioctl(0, TIOCGWINSZ, &size) || size.ws_col != columns || size.ws_row != rows) nap(0.005);
}

/* Reads one line of stdin, and no byte more. */
static void line(void) {
    char byte = 0;
    while (byte != '\n')
        if (read(0, &byte, 1) != 1) fail("line");
}

/* Reads stdin to its end and says how many bytes there were. */
static void count(void) {
    static char buffer[65536];
    long long all = 0;
    ssize_t n;
    while ((n = read(0, buffer, sizeof buffer)) > 0) all += n;
    if (n < 0) fail("count");
    printf("%lld bytes\n", all);
}

/* Bytes by which a test knows what is missing, doubled or moved: a block whose length is a prime, again and again. */
#define PATTERN_BLOCK 1000003
static unsigned char pattern_block[PATTERN_BLOCK];

static void make_pattern(void) {
    for (unsigned i = 0; i < PATTERN_BLOCK; i++) pattern_block[i] = (i * 2654435761u) >> 24;
}

/* Writes so much of the pattern. */
static void pattern(long long bytes) {
    make_pattern();
    fflush(stdout);
    for (long long at = 0; at < bytes;) {
        size_t from = at % PATTERN_BLOCK, most = PATTERN_BLOCK - from;
        if ((long long)most > bytes - at) most = bytes - at;
        ssize_t n = write(1, pattern_block + from, most);
        if (n < 0) fail("pattern");
        at += n;
    }
}

/* Reads stdin to its end and says how much of the pattern it was. */
static void verify(void) {
    static unsigned char buffer[262144];
    long long at = 0;
    ssize_t n;
    make_pattern();
    while ((n = read(0, buffer, sizeof buffer)) > 0)
        for (ssize_t seen = 0; seen < n;) {
            size_t from = at % PATTERN_BLOCK, most = PATTERN_BLOCK - from;
            if (most > (size_t)(n - seen)) most = n - seen;
            if (memcmp(buffer + seen, pattern_block + from, most)) {
                printf("wrong after %lld\n", at);
                return;
            }
            at += most;
            seen += most;
        }
    if (n < 0) fail("verify");
    printf("%lld bytes of the pattern\n", at);
}

/* Gives every connection to `port` of the loopback back what it sends, until it sends no more. */
static void reflect(int family, int port) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    static char buffer[65536];
    int on = 1, is_v4 = family == AF_INET, door = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (door < 0) fail("socket");
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(door, is_v4 ? (void *)&v4 : (void *)&v6, is_v4 ? sizeof v4 : sizeof v6) || listen(door, 64)) fail("listen");
    signal(SIGCHLD, SIG_IGN);
    printf("reflecting\n");
    fflush(stdout);
    for (;;) {
        int guest = accept4(door, NULL, NULL, SOCK_CLOEXEC);
        if (guest < 0) continue;
        if (!fork()) {
            ssize_t n;
            while ((n = read(guest, buffer, sizeof buffer)) > 0)
                for (ssize_t sent = 0; sent < n;) {
                    ssize_t more = write(guest, buffer + sent, n - sent);
                    if (more < 0) _exit(1);
                    sent += more;
                }
            _exit(0);
        }
        close(guest);
    }
}

/* Tries something and says "ok" or the error's name; never fails. */
static void attempt(const char *what, char **a, int n) {
    int outcome = -1;
    errno = ENOSYS;
    if (!strcmp(what, "unshare-user")) outcome = unshare(CLONE_NEWUSER);
    else if (!strcmp(what, "unshare-net")) outcome = unshare(CLONE_NEWNET);
    else if (!strcmp(what, "sethostname")) outcome = sethostname("changed", 7);
    else if (!strcmp(what, "setgroups")) outcome = setgroups(0, NULL);
    else if (!strcmp(what, "raw-socket")) outcome = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
    else if (!strcmp(what, "read") && n > 0) outcome = open(a[0], O_RDONLY | O_CLOEXEC);
    else if (!strcmp(what, "write") && n > 0) outcome = open(a[0], O_WRONLY | O_CLOEXEC);
    else if (!strcmp(what, "create") && n > 0) outcome = open(a[0], O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    else if (!strcmp(what, "mkdir") && n > 0) outcome = mkdir(a[0], 0755);
    else if (!strcmp(what, "chown") && n > 2) outcome = chown(a[0], atoi(a[1]), atoi(a[2]));
    else if (!strcmp(what, "mknod") && n > 2) outcome = mknod(a[0], S_IFCHR | 0666, makedev(atoi(a[1]), atoi(a[2])));
    else if (!strcmp(what, "tmpfs") && n > 0) outcome = mount("tmpfs", a[0], "tmpfs", 0, NULL);
    else if (!strcmp(what, "bind") && n > 1) outcome = mount(a[0], a[1], NULL, MS_BIND, NULL);
    else if (!strcmp(what, "remount-rw") && n > 0) outcome = mount(NULL, a[0], NULL, MS_REMOUNT | MS_BIND, NULL);
    else if (!strcmp(what, "umount") && n > 0) outcome = umount2(a[0], MNT_DETACH);
    else if (!strcmp(what, "chroot")) outcome = chroot("/");
    else if (!strcmp(what, "kill") && n > 0) outcome = kill(atoi(a[0]), n > 1 ? atoi(a[1]) : SIGTERM);
    if (outcome < 0) puts(strerrorname_np(errno));
    else puts("ok");
}

static void lines(int n, const char *word) {
    for (int i = 1; i <= n; i++) printf("%s %d\n", word, i);
}

static void fill(long bytes, FILE *to) {
    static char block[4096];
    memset(block, 'x', sizeof block);
    for (; bytes > 0; bytes -= sizeof block) fwrite(block, 1, bytes < 4096 ? (size_t)bytes : sizeof block, to);
}

static void words(char **a, int n, FILE *to, const char *end) {
    for (int i = 0; i < n; i++) fprintf(to, "%s%s", i ? " " : "", a[i]);
    fprintf(to, "%s", end);
}

static void run(char *c, char **a, int n) {
#define IS(name, least) (!strcmp(c, name) && n >= (least))
    if (IS("print", 0)) words(a, n, stdout, "\n");
    else if (IS("err", 0)) words(a, n, stderr, "\n");
    else if (IS("partial", 0)) words(a, n, stdout, "");
    else if (IS("lines", 1)) lines(atoi(a[0]), n > 1 ? a[1] : "line");
    else if (IS("bytes", 1)) fill(atol(a[0]), n > 1 ? stderr : stdout);
    else if (IS("flood", 0)) for (;;) { fill(4095, stdout); puts(""); }
    else if (IS("tick", 1)) for (long i = 1;; i++) { printf("tick %ld\n", i); fflush(stdout); nap(atof(a[0])); }
    else if (IS("sleep", 1)) nap(atof(a[0]));
    else if (IS("pause", 0)) for (;;) pause();
    else if (IS("spin", 0)) for (volatile long i = 0;; i++) {}
    else if (IS("exit", 1)) { fflush(stdout); _exit(atoi(a[0])); }
    else if (IS("abort", 0)) { fflush(stdout); signal(SIGABRT, SIG_DFL); abort(); }
    else if (IS("signal-self", 1)) { fflush(stdout); kill(getpid(), atoi(a[0])); }
    else if (IS("on-term", 1)) { term_code = atoi(a[0]); signal(SIGTERM, on_term); }
    else if (IS("on-usr1", 1)) { term_code = atoi(a[0]); signal(SIGUSR1, on_term); }
    else if (IS("ignore-term", 0)) signal(SIGTERM, SIG_IGN);
    else if (IS("reap", 0)) signal(SIGCHLD, reap);
    else if (IS("eat", 1)) eat((size_t)atol(a[0]) << 20);
    else if (IS("fork", 2)) spawn_sleepers(atoi(a[0]), atof(a[1]));
    else if (IS("child-eats", 1)) {
        fflush(stdout);
        pid_t child = fork();
        if (!child) { eat((size_t)atol(a[0]) << 20); _exit(0); }
        waitpid(child, NULL, 0);
    }
    else if (IS("cat", 1)) for (int i = 0; i < n; i++) copy(a[i]);
    else if (IS("write", 2)) put(a[0], a[1], O_TRUNC);
    else if (IS("append", 2)) put(a[0], a[1], O_APPEND);
    else if (IS("ls", 1)) list(a[0]);
    else if (IS("stat", 1)) describe(a[0]);
    else if (IS("readlink", 1)) {
        char target[4096];
        ssize_t size = readlink(a[0], target, sizeof target - 1);
        if (size < 0) fail(a[0]);
        target[size] = 0;
        puts(target);
    }
    else if (IS("await", 1)) while (access(a[0], F_OK)) nap(0.01);
    else if (IS("env", 0)) for (char **e = environ; *e; e++) puts(*e);
    else if (IS("pwd", 0)) { char path[4096]; if (!getcwd(path, sizeof path)) fail("pwd"); puts(path); }
    else if (IS("hostname", 0)) { struct utsname host; uname(&host); puts(host.nodename); }
    else if (IS("id", 0)) identity();
    else if (IS("pid", 0)) printf("%d\n", getpid());
    else if (IS("umask", 0)) printf("%04o\n", umask(0));
    else if (IS("fds", 0)) descriptors();
    else if (IS("namespaces", 0)) namespaces();
    else if (IS("status", 1)) status_lines(a, n);
    else if (IS("procs", 0)) processes();
    else if (IS("tty", 0)) terminal();
    else if (IS("echo", 0)) { char line[4096]; while (fgets(line, sizeof line, stdin)) { fputs(line, stdout); fflush(stdout); } }
    else if (IS("line", 0)) line();
    else if (IS("count", 0)) count();
    else if (IS("pattern", 1)) pattern(atoll(a[0]));
    else if (IS("verify", 0)) verify();
    else if (IS("await-size", 2)) await_size(atoi(a[0]), atoi(a[1]));
    else if (IS("ignore-hup", 0)) signal(SIGHUP, SIG_IGN);
    else if (IS("close", 1)) close(atoi(a[0]));
    else if (IS("reflect", 1)) reflect(AF_INET, atoi(a[0]));
    else if (IS("reflect6", 1)) reflect(AF_INET6, atoi(a[0]));
    else if (IS("listen", 1)) serve(atoi(a[0]));
    else if (IS("connect", 2)) call(a[0], atoi(a[1]));
    else if (IS("try", 1)) attempt(a[0], a + 1, n - 1);
    else { fprintf(stderr, "error: no command %s with %d words\n", c, n); exit(2); }
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOFBF, 65536);
    for (int i = 1; i < argc;) {
        int end = i;
        while (end < argc && strcmp(argv[end], ",")) end++;
        if (end > i) run(argv[i], argv + i + 1, end - i - 1);
        fflush(stdout);
        i = end + 1;
    }
    return 0;
}
