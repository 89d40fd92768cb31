/* Operations on a node that several processes share: allocate and free memory, find live processes, apply faults. */
#define _GNU_SOURCE
#include "node.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static struct node *here; /* the node in NODE_VARIABLE */
static pthread_mutex_t here_mutex = PTHREAD_MUTEX_INITIALIZER;

static uint64_t pid_namespace(void) {
    struct stat status;
    return stat("/proc/self/ns/pid", &status) == 0 ? (uint64_t)status.st_ino : 0;
}

struct node *node_open(const char *path) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return NULL;
    struct stat status;
    struct state *state = MAP_FAILED;
    if (fstat(fd, &status) == 0 && status.st_size == (off_t)sizeof(struct state))
        state = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (state == MAP_FAILED) {
        close(fd);
        return NULL;
    }
    struct node *node = calloc(1, sizeof *node);
    node->state = state;
    node->fd = fd;
    node->own_slot = -1;
    node->pid_namespace = pid_namespace();
    snprintf(node->path, sizeof node->path, "%s", path);
    pthread_mutex_init(&node->mutex, NULL);
    return node;
}

void node_close(struct node *node) {
    munmap(node->state, sizeof(struct state));
    close(node->fd);
    free(node);
}

/* A fork must not copy a mutex that another thread holds. The child does not own the parent's memory. */
static void before_fork(void) {
    pthread_mutex_lock(&here_mutex);
    if (here) pthread_mutex_lock(&here->mutex);
}

static void after_fork_in_parent(void) {
    if (here) pthread_mutex_unlock(&here->mutex);
    pthread_mutex_unlock(&here_mutex);
}

static void after_fork_in_child(void) {
    if (here) here->own_slot = -1;
    after_fork_in_parent();
}

struct node *node_of_this_process(void) {
    pthread_mutex_lock(&here_mutex);
    const char *path = getenv(NODE_VARIABLE);
    if (!here && path && *path) {
        here = node_open(path);
        if (here) pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    }
    pthread_mutex_unlock(&here_mutex);
    return here;
}

static int record_lock(struct node *node, int command, short type, off_t byte, pid_t *holder) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int done;
    do done = fcntl(node->fd, command, &lock);
    while (done < 0 && errno == EINTR);
    if (holder) *holder = lock.l_type == F_UNLCK ? 0 : lock.l_pid;
    return command == F_GETLK ? done == 0 && lock.l_type != F_UNLCK : done;
}

void node_lock(struct node *node) {
    pthread_mutex_lock(&node->mutex);
    record_lock(node, F_SETLKW, F_WRLCK, 0, NULL);
}

void node_unlock(struct node *node) {
    record_lock(node, F_SETLK, F_UNLCK, 0, NULL);
    pthread_mutex_unlock(&node->mutex);
}

/* A slot's owner is alive if the slot's byte is locked. A caller in the node's pid namespace also stores the owner's pid there. */
static int alive(struct node *node, int slot) {
    if (slot == node->own_slot) return 1;
    pid_t holder;
    if (!record_lock(node, F_GETLK, F_WRLCK, 1 + slot, &holder)) return 0;
    struct process *process = &node->state->processes[slot];
    if (!process->pid_is_hosts && holder > 0 && node->pid_namespace == node->state->pid_namespace) {
        __atomic_store_n(&process->pid, holder, __ATOMIC_RELEASE);
        __atomic_store_n(&process->pid_is_hosts, 1, __ATOMIC_RELEASE);
    }
    return 1;
}

/* The bytes that a slot's owner uses on a device; 0 if the owner has ended. Reads again if the slot got another owner. */
static uint64_t held(struct node *node, int slot, int device, int32_t *pid) {
    struct process *process = &node->state->processes[slot];
    for (;;) {
        uint64_t generation = __atomic_load_n(&process->generation, __ATOMIC_ACQUIRE);
        uint64_t bytes = __atomic_load_n(&process->bytes[device], __ATOMIC_ACQUIRE);
        if (bytes == 0) return 0;
        int is_alive = alive(node, slot);
        if (pid) *pid = __atomic_load_n(&process->pid, __ATOMIC_ACQUIRE);
        if (generation == __atomic_load_n(&process->generation, __ATOMIC_ACQUIRE) && !(generation & 1)) return is_alive ? bytes : 0;
        if (!is_alive) return 0; /* killed while it took the slot */
    }
}

int64_t node_used(struct node *node, int device) {
    struct state *state = node->state;
    int64_t used = __atomic_load_n(&state->devices[device].external, __ATOMIC_ACQUIRE);
    int limit = __atomic_load_n(&state->process_limit, __ATOMIC_ACQUIRE);
    for (int slot = 0; slot < limit; slot++) used += (int64_t)held(node, slot, device, NULL);
    for (int other = 0; other < state->device_count; other++)
        if (state->devices[other].parent == device) used += node_used(node, other);
    return used;
}

int64_t node_free(struct node *node, int device) {
    struct device *numbers = &node->state->devices[device];
    int64_t left = numbers->total - numbers->reserved - node_used(node, device);
    return left > 0 ? left : 0;
}

int node_processes(struct node *node, int device, struct holding *into, int room) {
    struct state *state = node->state;
    int count = 0;
    int limit = __atomic_load_n(&state->process_limit, __ATOMIC_ACQUIRE);
    for (int other = 0; other < state->device_count; other++) {
        if (other != device && state->devices[other].parent != device) continue;
        for (int slot = 0; slot < limit; slot++) {
            int32_t pid = 0;
            uint64_t bytes = held(node, slot, other, &pid);
            if (bytes == 0) continue;
            if (count < room) into[count] = (struct holding){.pid = pid, .device = other, .bytes = bytes};
            count++;
        }
    }
    return count;
}

/* This process's pid in the visible /proc: in a pid namespace without its own /proc, this is the host's pid. */
static int32_t outermost_pid(void) {
    char text[32];
    ssize_t length = readlink("/proc/self", text, sizeof text - 1);
    if (length <= 0) return getpid();
    text[length] = 0;
    int32_t pid = atoi(text);
    return pid > 0 ? pid : getpid();
}

/* Take a slot without a live owner. The caller holds the node's lock. */
static int take_slot(struct node *node) {
    struct state *state = node->state;
    for (int slot = 0; slot < MAX_PROCESSES; slot++) {
        if (record_lock(node, F_GETLK, F_WRLCK, 1 + slot, NULL)) continue;
        struct process *process = &state->processes[slot];
        __atomic_store_n(&process->generation, process->generation | 1, __ATOMIC_RELEASE);
        for (int device = 0; device < MAX_DEVICES; device++) __atomic_store_n(&process->bytes[device], 0, __ATOMIC_RELEASE);
        if (record_lock(node, F_SETLK, F_WRLCK, 1 + slot, NULL) < 0) continue;
        process->pid = outermost_pid();
        process->pid_is_hosts = node->pid_namespace == state->pid_namespace;
        __atomic_store_n(&process->generation, process->generation + 1, __ATOMIC_RELEASE);
        if (state->process_limit <= slot) __atomic_store_n(&state->process_limit, slot + 1, __ATOMIC_RELEASE);
        return node->own_slot = slot;
    }
    return -1;
}

int node_take(struct node *node, int device, uint64_t bytes) {
    node_lock(node);
    int refused = 0;
    if (node->own_slot < 0 && take_slot(node) < 0) refused = 2;
    else if ((uint64_t)node_free(node, device) < bytes) refused = 1;
    else __atomic_fetch_add(&node->state->processes[node->own_slot].bytes[device], bytes, __ATOMIC_ACQ_REL);
    node_unlock(node);
    return refused;
}

void node_give(struct node *node, int device, uint64_t bytes) {
    node_lock(node);
    if (node->own_slot >= 0) __atomic_fetch_sub(&node->state->processes[node->own_slot].bytes[device], bytes, __ATOMIC_ACQ_REL);
    node_unlock(node);
}

/* For faults, nvmlDeviceGetMemoryInfo_v2 and nvmlDeviceGetMemoryInfo are the same call. */
static size_t length_without_version(const char *call) {
    size_t length = strlen(call);
    if (length > 3 && call[length - 3] == '_' && call[length - 2] == 'v') return length - 3;
    return length;
}

static int strikes(struct node *node, struct fault *fault, const char *call, int device) {
    if (!__atomic_load_n(&fault->active, __ATOMIC_ACQUIRE)) return 0;
    if (strcmp(fault->call, "*") == 0) {
        if (device == NO_DEVICE || strncmp(call, "nvml", 4) != 0) return 0;
        if (fault->device != ANY_DEVICE && fault->device != device && fault->device != node->state->devices[device].parent) return 0;
    } else {
        size_t length = length_without_version(call);
        if (length != length_without_version(fault->call) || strncmp(call, fault->call, length) != 0) return 0;
        if (fault->device != ANY_DEVICE && fault->device != device) return 0;
    }
    int left = __atomic_load_n(&fault->times, __ATOMIC_ACQUIRE);
    if (left < 0) return 1;
    while (left > 0) /* never below 0, which means for ever */
        if (__atomic_compare_exchange_n(&fault->times, &left, left - 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return 1;
    return 0;
}

int node_fault(struct node *node, const char *call, int device) {
    for (int index = 0; index < MAX_FAULTS; index++) {
        struct fault *fault = &node->state->faults[index];
        if (!strikes(node, fault, call, device)) continue;
        for (int waited = 0; waited < fault->delay_ms && __atomic_load_n(&fault->active, __ATOMIC_ACQUIRE); waited += 5) {
            struct timespec pause = {.tv_nsec = 5000000}; /* in steps, so that control_restore ends a hanging call */
            nanosleep(&pause, NULL);
        }
        if (fault->code) return fault->code;
    }
    return 0;
}

int node_lost(struct node *node, int device) {
    for (int index = 0; index < MAX_FAULTS; index++) {
        struct fault *fault = &node->state->faults[index];
        if (fault->active && fault->code == 15 && strcmp(fault->call, "*") == 0 && fault->device == device) return 1;
    }
    return 0;
}

int view_is_a_container(void) {
    return getenv(CARDS_VARIABLE) != NULL;
}

static int pids_are(const char *visibility) {
    const char *value = getenv(PIDS_VARIABLE);
    return value && strcmp(value, visibility) == 0;
}

int view_hides_pids(void) {
    return pids_are("hidden");
}

int view_hides_process_memory(void) {
    return pids_are("without-memory");
}

/* Whether an entry of the comma-separated list is the card's index, its UUID, or the UUID of one of its instances. */
static int view_names(struct state *state, int card, int instance) {
    char entries[4096];
    snprintf(entries, sizeof entries, "%s", getenv(CARDS_VARIABLE));
    char *rest = NULL;
    for (char *entry = strtok_r(entries, ", ", &rest); entry; entry = strtok_r(NULL, ", ", &rest)) {
        char *end;
        long index = strtol(entry, &end, 10);
        if (*end == 0 && index == card) return 1;
        if (strcmp(entry, state->devices[card].uuid) == 0) return 1;
        for (int other = 0; other < state->device_count; other++)
            if (state->devices[other].parent == card && (instance == NO_DEVICE || instance == other) &&
                strcmp(entry, state->devices[other].uuid) == 0)
                return 1;
    }
    return 0;
}

int view_cards(struct node *node, int *cards) {
    int count = 0;
    for (int card = 0; card < node->state->device_count; card++)
        if (node->state->devices[card].parent == NO_DEVICE && (!view_is_a_container() || view_names(node->state, card, NO_DEVICE)))
            cards[count++] = card;
    return count;
}

int view_instances(struct node *node, int card, int *instances) {
    int count = 0;
    for (int other = 0; other < node->state->device_count; other++)
        if (node->state->devices[other].parent == card && (!view_is_a_container() || view_names(node->state, card, other)))
            instances[count++] = other;
    return count;
}
