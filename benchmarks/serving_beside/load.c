/* Clients that send one request again and again, each on a connection it keeps. In C, since they share the processors with the server.

   load PORT PATH BODY-FILE CLIENTS SECONDS LEAST

   All count from when each client had its first answer. It ends after SECONDS, or after three times that where fewer than LEAST answers
   have come. Prints JSON: requests a second, percentiles in ms, the answers counted, those before, and those that were not 200. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MOST_ANSWERS = 4000000, MOST_CLIENTS = 1024, ROOM = 1 << 18, GIVE_UP = 120 };

struct client {
    int socket;
    size_t sent, got, whole; /* whole: bytes of the answer, once its head is here */
    int status, answered;
    double began;
    char *answer;
};

static char *request;
static size_t length;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *why) {
    fprintf(stderr, "load: %s (%s)\n", why, strerror(errno));
    exit(1);
}

static void read_request(const char *path, const char *file) {
    FILE *f = fopen(file, "rb");
    struct stat s;
    if (!f || fstat(fileno(f), &s)) die("the body cannot be read");
    request = malloc(s.st_size + 512);
    int head = sprintf(request, "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %ld\r\n\r\n", path,
                       (long)s.st_size);
    if (fread(request + head, 1, s.st_size, f) != (size_t)s.st_size) die("the body cannot be read");
    length = head + s.st_size;
    fclose(f);
}

static void push(struct client *c) {
    while (c->sent < length) {
        ssize_t n = send(c->socket, request + c->sent, length - c->sent, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n < 0) die("the server closed a connection");
        c->sent += n;
    }
}

static void begin(struct client *c) {
    c->sent = c->got = c->whole = 0;
    c->began = now();
    push(c);
}

/* Whether the whole answer is here. */
static int pull(struct client *c) {
    ssize_t n = recv(c->socket, c->answer + c->got, ROOM - 1 - c->got, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) die("the server closed a connection");
    c->got += n;
    c->answer[c->got] = 0;
    if (!c->whole) {
        char *end = strstr(c->answer, "\r\n\r\n");
        if (!end) return 0;
        char *size = strcasestr(c->answer, "\r\ncontent-length:");
        if (!size || size > end) die("an answer without Content-Length");
        c->status = atoi(c->answer + 9);
        c->whole = end + 4 - c->answer + atol(size + 17);
        if (c->whole >= ROOM) die("the answer is too long");
    }
    return c->got >= c->whole;
}

static int order(const void *a, const void *b) {
    float d = *(const float *)a - *(const float *)b;
    return d < 0 ? -1 : d > 0;
}

int main(int count, char **words) {
    if (count != 7) die("usage: load PORT PATH BODY-FILE CLIENTS SECONDS LEAST");
    int port = atoi(words[1]), clients = atoi(words[4]), least = atoi(words[6]), waiting = clients;
    double seconds = atof(words[5]);
    if (clients < 1 || clients > MOST_CLIENTS) die("too many clients");
    read_request(words[2], words[3]);
    static struct client all[MOST_CLIENTS];
    float *took = malloc(sizeof(float) * MOST_ANSWERS);
    int poll = epoll_create1(0), one = 1;
    for (int i = 0; i < clients; i++) {
        struct client *c = &all[i];
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        c->socket = socket(AF_INET, SOCK_STREAM, 0);
        c->answer = malloc(ROOM);
        if (connect(c->socket, (struct sockaddr *)&to, sizeof to)) die("no server");
        setsockopt(c->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(c->socket, F_SETFL, O_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
        epoll_ctl(poll, EPOLL_CTL_ADD, c->socket, &event);
        begin(c);
    }
    long answers = 0, other = 0, before = 0;
    double start = 0, end = 0, born = now();
    for (;;) {
        struct epoll_event events[64];
        int n = epoll_wait(poll, events, 64, 1000);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (c->sent < length) push(c);
            if (!(events[i].events & EPOLLIN) || !pull(c)) continue;
            if (start) {
                if (answers < MOST_ANSWERS) took[answers++] = (now() - c->began) * 1000;
                other += c->status != 200;
            } else if (!c->answered) { /* the slowest client's first answer ends the warming up */
                c->answered = 1;
                waiting--;
            }
            before += !start;
            begin(c);
        }
        end = now();
        if (!start && !waiting) start = end;
        if (!start && end - born > GIVE_UP) die("some clients get no answer");
        if (start && end - start >= seconds && (answers >= least || end - start >= 3 * seconds)) break;
    }
    if (!answers) die("no answer came");
    qsort(took, answers, sizeof(float), order);
    printf("{\"rps\": %.1f, \"p50\": %.3f, \"p99\": %.3f, \"answers\": %ld, \"before\": %ld, \"not_200\": %ld}\n", answers / (end - start), took[answers / 2],
           took[answers * 99 / 100], answers, before, other);
    return 0;
}
