/* The state of a simulated node: cards, allocations by process, and faults, in a file that all processes map.
 *
 * A process that allocates owns a slot of `processes` while it holds a record lock (fcntl) on that slot's byte of the file. The kernel releases
 * the lock when the process ends in any way, does not pass it on to a forked child, and shows it across pid namespaces. So the lock lives as long
 * as a CUDA context, and the memory of a process that has ended is free at once, without using pids.
 *
 * Readers take no lock. Changes of memory take the record lock of byte 0.
 */
#ifndef MLOPS_BUILD_NODE_H
#define MLOPS_BUILD_NODE_H

#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

#define NODE_MAGIC 0x6d6c6f70734e0001ull /* changes with the layout */
#define NODE_VARIABLE "MLOPS_SIMULATED_NODE"
#define CARDS_VARIABLE "MLOPS_SIMULATED_CARDS"
#define PIDS_VARIABLE "MLOPS_SIMULATED_PIDS"

enum { MAX_DEVICES = 128, MAX_PROCESSES = 1024, MAX_FAULTS = 256, NO_DEVICE = -1, ANY_DEVICE = -1 };

/* A card or a MIG instance. Numbers are int64_t so that control.c can set them by name. */
struct device {
    char uuid[96], name[96], bus_id[32], serial[32];
    int64_t parent; /* the card of a MIG instance, else NO_DEVICE */
    int64_t total, reserved, external; /* bytes; external belongs to no process */
    int64_t memory_supported, mig_capable, mig_mode, gpu_instance, compute_instance;
    int64_t major, minor, speed, utilisation, temperature, power, power_limit, ecc_errors, multiprocessors, compute_mode; /* power: mW; -1: not supported */
};

struct process {
    uint64_t generation; /* odd while the slot gets a new owner */
    int32_t pid, pid_is_hosts;
    uint64_t bytes[MAX_DEVICES];
};

struct fault {
    int32_t active, device, code, delay_ms, times, padding; /* times: the remaining faulty calls; < 0: unlimited */
    char call[64]; /* "*": every call about the card */
};

struct state {
    uint64_t magic;
    uint64_t context_bytes;
    uint64_t pid_namespace; /* of the process that created the node; its pids count as the host's */
    int32_t init_code, device_count, process_limit, cuda_version;
    char driver_version[32];
    struct device devices[MAX_DEVICES];
    struct fault faults[MAX_FAULTS];
    struct process processes[MAX_PROCESSES];
};

struct node {
    struct state *state;
    int fd, own_slot; /* own_slot: -1 until this process allocates */
    uint64_t pid_namespace;
    char path[4096];
    pthread_mutex_t mutex; /* for threads, since a record lock belongs to the process */
};

struct node *node_open(const char *path);
void node_close(struct node *node);
struct node *node_of_this_process(void); /* the node in NODE_VARIABLE, opened once; NULL: none */

void node_lock(struct node *node);
void node_unlock(struct node *node);
int node_take(struct node *node, int device, uint64_t bytes); /* 0: done; 1: no room; 2: too many processes */
void node_give(struct node *node, int device, uint64_t bytes);

int64_t node_used(struct node *node, int device); /* including the card's MIG instances */
int64_t node_free(struct node *node, int device);
struct holding { int32_t pid; int device; uint64_t bytes; };
int node_processes(struct node *node, int device, struct holding *into, int room); /* returns the total number */

int node_fault(struct node *node, const char *call, int device); /* waits for the fault's delay; returns its code, or 0 */
int node_lost(struct node *node, int device);

/* A container's view of the node, by CARDS_VARIABLE and PIDS_VARIABLE. */
int view_is_a_container(void);
int view_hides_pids(void);
int view_hides_process_memory(void);
int view_cards(struct node *node, int *cards); /* in NVML's order; returns the number */
int view_instances(struct node *node, int card, int *instances);

#endif
