// A shim that is started with a lower soft limit of open files than the test has: SHIM is its path.
#include <sys/resource.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct rlimit files;
    if (argc < 1 || getrlimit(RLIMIT_NOFILE, &files)) return 1;
    files.rlim_cur = 1000;
    if (setrlimit(RLIMIT_NOFILE, &files)) return 2;
    execv(SHIM, argv);
    return 3;
}
