/* What runs in the containers of these tests: does what its arguments say and prints one line for each.
 *
 *   probe COMMAND ARGUMENT... -- COMMAND ARGUMENT... -- ...
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *failed(void) {
    static char text[64];
    snprintf(text, sizeof text, "!%s", strerrorname_np(errno));
    return text;
}

static void cat(const char *path) {
    char text[65536];
    int fd = open(path, O_RDONLY);
    ssize_t n, length = 0;
    if (fd < 0) { puts(failed()); return; }
    while (length < (ssize_t)sizeof text - 1 && (n = read(fd, text + length, sizeof text - 1 - length)) > 0) length += n;
    close(fd);
    while (length > 0 && text[length - 1] == '\n') length--;
    text[length] = 0;
    for (char *c = text; *c; c++) if (*c == '\n') *c = '|';
    puts(text);
}

static void status(void) {
    static const char *wanted[] = {"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
                                   "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "Umask", 0};
    FILE *file = fopen("/proc/self/status", "r");
    char line[4096];
    if (!file) { puts(failed()); return; }
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (!colon) continue;
        *colon = 0;
        for (const char **name = wanted; *name; name++) {
            if (strcmp(line, *name)) continue;
            printf("%s=", *name);
            for (char *c = colon + 1; *c; c++) {
                if (*c == '\t' || *c == '\n') { if (c != colon + 1 && *c == '\t') putchar(' '); }
                else putchar(*c);
            }
            putchar(';');
        }
    }
    putchar('\n');
    fclose(file);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void list(const char *path) {
    DIR *dir = opendir(path);
    struct dirent *entry;
    char *names[1024];
    int count = 0;
    if (!dir) { puts(failed()); return; }
    char own[16];
    snprintf(own, sizeof own, "%d", dirfd(dir));
    int is_fd = strstr(path, "/fd") != NULL;
    while ((entry = readdir(dir)) && count < 1024) {
        if (entry->d_name[0] == '.') continue;
        if (is_fd && !strcmp(entry->d_name, own)) continue;
        names[count++] = strdup(entry->d_name);
    }
    qsort(names, count, sizeof *names, by_name);
    for (int i = 0; i < count; i++) printf("%s%s", i ? " " : "", names[i]);
    putchar('\n');
    closedir(dir);
}

static void write_to(const char *path, const char *text, int flags) {
    int fd = open(path, O_WRONLY | flags, 0644);
    if (fd < 0) { puts(failed()); return; }
    if (write(fd, text, strlen(text)) < 0) puts(failed());
    else puts("ok");
    close(fd);
}

static void describe(const char *path) {
    struct stat st;
    if (lstat(path, &st)) { puts(failed()); return; }
    const char *kind = S_ISDIR(st.st_mode) ? "dir" : S_ISREG(st.st_mode) ? "file" : S_ISLNK(st.st_mode) ? "link"
        : S_ISCHR(st.st_mode) ? "char" : S_ISBLK(st.st_mode) ? "block" : S_ISFIFO(st.st_mode) ? "fifo" : "other";
    printf("%s %o %d:%d", kind, st.st_mode & 07777, st.st_uid, st.st_gid);
    if (S_ISCHR(st.st_mode)) printf(" %d:%d", major(st.st_rdev), minor(st.st_rdev));
    putchar('\n');
}

static void terminal(void) {
    struct winsize size = {0};
    char name[64] = "?";
    int tty = open("/dev/tty", O_RDWR);
    ttyname_r(0, name, sizeof name);
    ioctl(0, TIOCGWINSZ, &size);
    struct stat console, own;
    int same = !stat("/dev/console", &console) && !fstat(0, &own) && console.st_rdev == own.st_rdev;
    printf("isatty=%d%d%d controlling=%d name=%s size=%dx%d console=%d leader=%d\n", isatty(0), isatty(1), isatty(2),
           tty >= 0, name, size.ws_col, size.ws_row, same, getsid(0) == getpid());
    if (tty >= 0) close(tty);
}

/* Looks at every other process but the first for a while: which capabilities were permitted to any of them, and what
 * they had open above their standard descriptors. */
static void snoop(int milliseconds) {
    unsigned long long seen = 0;
    int files = 0, outside = 0, processes = 0;
    struct timespec now, end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += milliseconds / 1000;
    do {
        DIR *proc = opendir("/proc");
        struct dirent *entry;
        while ((entry = readdir(proc))) {
            char path[300], line[256], target[PATH_MAX];
            int pid = atoi(entry->d_name);
            if (pid <= 1 || pid == getpid()) continue;
            snprintf(path, sizeof path, "/proc/%d/status", pid);
            FILE *status = fopen(path, "r");
            if (!status) continue;
            processes++;
            while (fgets(line, sizeof line, status))
                if (!strncmp(line, "CapPrm:", 7)) seen |= strtoull(line + 7, NULL, 16);
            fclose(status);
            snprintf(path, sizeof path, "/proc/%d/fd", pid);
            DIR *fds = opendir(path);
            struct dirent *fd;
            while (fds && (fd = readdir(fds))) {
                if (atoi(fd->d_name) < 3) continue;
                snprintf(path, sizeof path, "/proc/%d/fd/%s", pid, fd->d_name);
                ssize_t n = readlink(path, target, sizeof target - 1);
                if (n > 0) { target[n] = 0; if (strncmp(target, "socket:", 7)) files++; }
            }
            if (fds) closedir(fds);
            snprintf(path, sizeof path, "/proc/%d/root/mnt/only-on-the-host", pid);
            struct stat st;
            if (!stat(path, &st)) outside++;
        }
        closedir(proc);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
    printf("caps=%llx files=%d outside=%d some=%d\n", seen, files, outside, processes > 0);
}

static int one(char **args, int count) {
    const char *command = args[0], *first = count > 1 ? args[1] : "", *second = count > 2 ? args[2] : "";
    const char *third = count > 3 ? args[3] : "";
    char text[PATH_MAX];
    if (!strcmp(command, "exit")) { fflush(stdout); _exit(atoi(first)); }
    else if (!strcmp(command, "kill")) { fflush(stdout); kill(getpid(), atoi(first)); }
    else if (!strcmp(command, "cat")) cat(first);
    else if (!strcmp(command, "write")) write_to(first, second, 0);
    else if (!strcmp(command, "create")) write_to(first, second, O_CREAT);
    else if (!strcmp(command, "ls")) list(first);
    else if (!strcmp(command, "stat")) describe(first);
    else if (!strcmp(command, "fds")) list("/proc/self/fd");
    else if (!strcmp(command, "status")) status();
    else if (!strcmp(command, "tty")) terminal();
    else if (!strcmp(command, "say")) puts(first);
    else if (!strcmp(command, "cwd")) puts(getcwd(text, sizeof text) ? text : failed());
    else if (!strcmp(command, "ids")) printf("pid=%d ppid=%d\n", getpid(), getppid());
    else if (!strcmp(command, "hostname")) { gethostname(text, sizeof text); puts(text); }
    else if (!strcmp(command, "readlink")) {
        ssize_t n = readlink(first, text, sizeof text - 1);
        if (n < 0) puts(failed());
        else { text[n] = 0; puts(text); }
    }
    else if (!strcmp(command, "fstype")) {
        struct statfs fs;
        if (statfs(first, &fs)) puts(failed());
        else printf("%lx\n", (long)fs.f_type);
    }
    else if (!strcmp(command, "mknod"))
        puts(mknod(first, S_IFCHR | 0666, makedev(atoi(second), atoi(third))) ? failed() : "ok");
    else if (!strcmp(command, "chown")) puts(chown(first, 0, 0) ? failed() : "ok");
    else if (!strcmp(command, "signal")) puts(kill(atoi(first), 0) ? failed() : "ok");
    else if (!strcmp(command, "settime")) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        puts(clock_settime(CLOCK_REALTIME, &now) ? failed() : "ok");
    }
    else if (!strcmp(command, "mkdir")) puts(mkdir(first, 0755) ? failed() : "ok");
    else if (!strcmp(command, "mount-tmpfs")) puts(mount("tmpfs", first, "tmpfs", 0, "size=64k") ? failed() : "ok");
    else if (!strcmp(command, "env")) { char *value = getenv(first); puts(value ? value : "(unset)"); }
    else if (!strcmp(command, "nofile")) printf("%ld\n", sysconf(_SC_OPEN_MAX));
    else if (!strcmp(command, "getppid")) { errno = 0; long r = syscall(SYS_getppid); puts(r < 0 ? failed() : "ok"); }
    else if (!strcmp(command, "orphan")) {
        /* A grandchild that is left alone and ends. */
        pid_t pid = fork();
        if (pid == 0) {
            pid_t child = fork();
            if (child == 0) { usleep(50000); _exit(0); }
            dprintf(1, "%d\n", child);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    }
    else if (!strcmp(command, "wait-for")) {
        struct stat st;
        for (int i = 0; i < 1000 && lstat(first, &st); i++) usleep(10000);
        puts(lstat(first, &st) ? "never" : "there");
    }
    else if (!strcmp(command, "wait-gone")) {
        struct stat st;
        for (int i = 0; i < 1000 && !lstat(first, &st); i++) usleep(10000);
        puts(lstat(first, &st) ? "gone" : "still");
    }
    else if (!strcmp(command, "flip")) {
        /* Exchanges two names for ever. */
        for (;;) syscall(SYS_renameat2, AT_FDCWD, first, AT_FDCWD, second, 2 /* RENAME_EXCHANGE */);
    }
    else if (!strcmp(command, "snoop")) snoop(atoi(first));
    else if (!strcmp(command, "points")) {
        /* How many mounts there are below a path. */
        char text[65536];
        FILE *file = fopen("/proc/self/mountinfo", "r");
        int count = 0;
        while (fgets(text, sizeof text, file)) {
            char point[PATH_MAX];
            if (sscanf(text, "%*s %*s %*s %*s %s", point) == 1 && !strncmp(point, first, strlen(first))) count++;
        }
        printf("%d\n", count);
        fclose(file);
    }
    else if (!strcmp(command, "sleep")) { fflush(stdout); for (;;) pause(); }
    else printf("unknown command %s\n", command);
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv) {
    int start = 1;
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    for (int i = 1; i <= argc; i++) {
        if (i < argc && strcmp(argv[i], "--")) continue;
        if (i > start) one(argv + start, i - start);
        start = i + 1;
    }
    return 0;
}
