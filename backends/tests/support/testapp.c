/* The containers' program of the engine tests. Its first argument says what it does:
 *   serve       answers any HTTP request with 200 on $PORT until SIGTERM
 *   stubborn    as serve, but ignores SIGTERM
 *   exit N      ends with code N
 *   print N     N lines "out i" to stdout and "err i" to stderr, then ends
 *   long N      one line of N characters, then ends
 *   tick        a line every 50 ms until SIGTERM
 *   eat N       touches N MiB of memory, then serves nothing and sleeps
 *   outlive N   lets a child process touch N MiB, which the kernel may kill, then serves
 *   child N     lets a child process touch N MiB, then ends with code 5
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void quit(int signal) { (void)signal; _exit(0); }

static int serve(void) {
    const char *text = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n";
    const char *port = getenv("PORT");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port ? atoi(port) : 8080)};
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) return 9;
    for (;;) {
        char request[4096];
        int stream = accept(listener, NULL, NULL);
        if (stream < 0) continue;
        if (read(stream, request, sizeof request) > 0 && write(stream, text, strlen(text)) < 0) {}
        close(stream);
    }
}

static void eat(long mib) {
    for (long i = 0; i < mib; i++) {
        char *block = malloc(1 << 20);
        if (block) memset(block, 1, 1 << 20);
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "serve";
    long n = argc > 2 ? atol(argv[2]) : 0;
    setvbuf(stdout, NULL, _IOLBF, 1 << 16);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, strcmp(what, "stubborn") ? quit : SIG_IGN);
    if (!strcmp(what, "exit")) return (int)n;
    if (!strcmp(what, "print")) {
        for (long i = 1; i <= n; i++) {
            printf("out %ld\n", i);
            fprintf(stderr, "err %ld\n", i);
        }
        return 0;
    }
    if (!strcmp(what, "long")) {
        for (long i = 0; i < n; i++) putchar('a' + i % 26);
        putchar('\n');
        return 0;
    }
    if (!strcmp(what, "tick")) {
        for (long i = 1;; i++) {
            printf("tick %ld\n", i);
            usleep(50000);
        }
    }
    if (!strcmp(what, "eat")) {
        eat(n);
        for (;;) pause();
    }
    if (!strcmp(what, "child") || !strcmp(what, "outlive")) {
        pid_t child = fork();
        if (child == 0) {
            eat(n);
            _exit(0);
        }
        waitpid(child, NULL, 0);
        if (!strcmp(what, "child")) return 5;
    }
    return serve();
}
