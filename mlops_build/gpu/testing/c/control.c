/* Create and change a node; mlops_build.gpu.testing calls these functions through ctypes. */
#define _GNU_SOURCE
#include "node.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct node *control_open(const char *path) { return node_open(path); }
void control_close(struct node *node) { node_close(node); }

struct node *control_create(const char *path, int64_t context_bytes, const char *driver_version, int cuda_version) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) return NULL;
    int created = fchmod(fd, 0666) == 0 && ftruncate(fd, sizeof(struct state)) == 0; /* writable for all users, independent of the umask */
    close(fd);
    struct node *node = created ? node_open(path) : NULL;
    if (!node) return NULL;
    struct state *state = node->state;
    state->context_bytes = (uint64_t)context_bytes;
    state->pid_namespace = node->pid_namespace;
    state->cuda_version = cuda_version;
    snprintf(state->driver_version, sizeof state->driver_version, "%s", driver_version);
    __atomic_store_n(&state->magic, NODE_MAGIC, __ATOMIC_RELEASE);
    return node;
}

static const struct { const char *name; size_t offset; } numbers[] = {
#define NUMBER(field) {#field, offsetof(struct device, field)}
    NUMBER(total), NUMBER(reserved), NUMBER(external), NUMBER(memory_supported), NUMBER(mig_capable), NUMBER(mig_mode), NUMBER(gpu_instance),
    NUMBER(compute_instance), NUMBER(major), NUMBER(minor), NUMBER(speed), NUMBER(utilisation), NUMBER(temperature), NUMBER(power),
    NUMBER(power_limit), NUMBER(ecc_errors), NUMBER(multiprocessors), NUMBER(compute_mode),
    NUMBER(parent),
};

int control_set(struct node *node, int device, const char *name, int64_t value) {
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(numbers[i].name, name) == 0) {
            __atomic_store_n((int64_t *)((char *)&node->state->devices[device] + numbers[i].offset), value, __ATOMIC_RELEASE);
            return 0;
        }
    return -1;
}

/* The device's index, or -1 if there are too many. Other processes see it after control_show. */
int control_add(struct node *node, int parent, const char *uuid, const char *name, const char *bus_id, const char *serial) {
    int index = node->state->device_count;
    if (index >= MAX_DEVICES) return -1;
    struct device *device = &node->state->devices[index];
    device->parent = parent;
    snprintf(device->uuid, sizeof device->uuid, "%s", uuid);
    snprintf(device->name, sizeof device->name, "%s", name);
    snprintf(device->bus_id, sizeof device->bus_id, "%s", bus_id);
    snprintf(device->serial, sizeof device->serial, "%s", serial);
    return index;
}

void control_show(struct node *node) { __atomic_fetch_add(&node->state->device_count, 1, __ATOMIC_ACQ_REL); }

void control_init_code(struct node *node, int code) { __atomic_store_n(&node->state->init_code, code, __ATOMIC_RELEASE); }

int control_fault(struct node *node, int device, const char *call, int code, int delay_ms, int times) {
    for (int i = 0; i < MAX_FAULTS; i++) {
        struct fault *fault = &node->state->faults[i];
        if (fault->active) continue;
        fault->device = device;
        fault->code = code;
        fault->delay_ms = delay_ms;
        fault->times = times;
        snprintf(fault->call, sizeof fault->call, "%s", call);
        __atomic_store_n(&fault->active, 1, __ATOMIC_RELEASE);
        return 0;
    }
    return -1;
}

/* every: end the faults of all cards. */
void control_restore(struct node *node, int device, int every) {
    for (int i = 0; i < MAX_FAULTS; i++)
        if (every || node->state->faults[i].device == device) __atomic_store_n(&node->state->faults[i].active, 0, __ATOMIC_RELEASE);
}

int64_t control_used(struct node *node, int device) { return node_used(node, device); }

int control_processes(struct node *node, int device, int32_t *pids, int64_t *bytes, int room) {
    static __thread struct holding holdings[MAX_PROCESSES];
    int count = node_processes(node, device, holdings, MAX_PROCESSES);
    if (count > room) count = room;
    for (int i = 0; i < count; i++) {
        pids[i] = holdings[i].pid;
        bytes[i] = (int64_t)holdings[i].bytes;
    }
    return count;
}
