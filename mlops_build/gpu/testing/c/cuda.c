/* libcuda.so.1: devices, contexts and memory. Signatures and codes as in NVIDIA's cuda.h. Nothing computes: memory is only counted, and its
 * addresses must not be accessed.
 *
 * Like CUDA, the visible devices are determined once, in cuInit: see `enumerate` and `masked`.
 */
#define _GNU_SOURCE
#include "node.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    DEVICE_UNAVAILABLE = 46,
    NO_DEVICE_SEEN = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    SYSTEM_DRIVER_MISMATCH = 803,
    UNKNOWN = 999,
};

enum { MAX_ENTRIES = 256 }; /* of CUDA_VISIBLE_DEVICES */

struct allocation { struct allocation *next; uint64_t address, bytes; };

struct context {
    struct context *next;
    int device, ordinal, primary, references;
    struct allocation *allocations;
};
typedef struct context *context_t;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct node *node;
static int initialised, forked; /* forked: from a process that had initialised CUDA, so CUDA cannot be used */
static int seen[MAX_ENTRIES], seen_count; /* ordinal -> device */
static struct context *contexts;
static uint64_t next_address = 0x7f0000000000ull;
static __thread context_t current;

/* ── devices ── */

/* CUDA's order: the fastest first; NVML's order with CUDA_DEVICE_ORDER=PCI_BUS_ID, and among equal cards. */
static void sort_by_speed(int *cards, int count) {
    for (int i = 1; i < count; i++)
        for (int j = i; j > 0 && node->state->devices[cards[j]].speed > node->state->devices[cards[j - 1]].speed; j--) {
            int swapped = cards[j];
            cards[j] = cards[j - 1];
            cards[j - 1] = swapped;
        }
}

/* All cards that CUDA can use: not lost, and with MIG on only if they have an instance. */
static int enumerate(int *cards) {
    int all[MAX_DEVICES], instances[MAX_DEVICES], count = 0;
    int there = view_cards(node, all);
    for (int i = 0; i < there; i++) {
        if (node_lost(node, all[i])) continue;
        if (node->state->devices[all[i]].mig_mode == 1 && view_instances(node, all[i], instances) == 0) continue;
        cards[count++] = all[i];
    }
    const char *order = getenv("CUDA_DEVICE_ORDER");
    if (!order || strcmp(order, "PCI_BUS_ID") != 0) sort_by_speed(cards, count);
    return count;
}

static int starts_with(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* The card whose UUID starts with the prefix; NO_DEVICE if there is none, or several. */
static int card_by_prefix(const char *prefix, const int *cards, int count) {
    int match = NO_DEVICE;
    for (int i = 0; i < count; i++) {
        if (!starts_with(node->state->devices[cards[i]].uuid, prefix)) continue;
        if (match != NO_DEVICE) return NO_DEVICE;
        match = cards[i];
    }
    return match;
}

/* MIG-<uuid>, or the older form MIG-GPU-<uuid of the card>/<gpu instance>/<compute instance>. */
static int instance_by_name(const char *name, const int *cards, int count) {
    int instances[MAX_DEVICES];
    for (int i = 0; i < count; i++) {
        int parts = view_instances(node, cards[i], instances);
        for (int part = 0; part < parts; part++) {
            struct device *device = &node->state->devices[instances[part]];
            char older[160];
            snprintf(older, sizeof older, "MIG-%s/%d/%d", node->state->devices[cards[i]].uuid, (int)device->gpu_instance,
                     (int)device->compute_instance);
            if (strcmp(name, device->uuid) == 0 || strcmp(name, older) == 0) return instances[part];
        }
    }
    return NO_DEVICE;
}

/* Parse an index like strtoul: "1x" is 1; without a leading digit, -1. */
static long index_in(const char *text) {
    while (*text == ' ') text++;
    if (*text == '+') text++;
    return *text < '0' || *text > '9' ? -1 : strtol(text, NULL, 10);
}

static int masked_by_index(char *rest, const int *cards, int count, int *into) {
    long indices[MAX_ENTRIES];
    int entry_count = 0, kept = 0;
    for (char *entry; entry_count < MAX_ENTRIES && (entry = strsep(&rest, ",")); entry_count++) {
        indices[entry_count] = index_in(entry);
        if (indices[entry_count] < 0) break;
        for (int i = 0; i < entry_count; i++)
            if (indices[i] == indices[entry_count]) return 0;
    }
    while (kept < entry_count && indices[kept] < count) into[kept] = cards[indices[kept]], kept++;
    return kept;
}

static int masked_by_uuid(char *rest, const char *kind, const int *cards, int count, int *into) {
    const char *entries[MAX_ENTRIES];
    int entry_count = 0, kept = 0;
    for (char *entry; entry_count < MAX_ENTRIES && (entry = strsep(&rest, ",")) && starts_with(entry, kind); entry_count++) {
        entries[entry_count] = entry;
        for (int i = 0; i < entry_count; i++)
            if (strcmp(entries[i], entry) == 0) return 0;
    }
    for (; kept < entry_count; kept++) {
        into[kept] = strcmp(kind, "GPU-") == 0 ? card_by_prefix(entries[kept], cards, count) : instance_by_name(entries[kept], cards, count);
        if (into[kept] == NO_DEVICE) return kept;
        for (int i = 0; i < kept; i++)
            if (into[i] == into[kept]) return 0;
    }
    return kept;
}

/* Apply CUDA_VISIBLE_DEVICES: devices up to the first entry that matches nothing; none if an entry is repeated. The first entry decides whether
 * entries are indices, GPU-... or MIG-...; an entry of another kind matches nothing. torch reads the variable in the same way
 * (torch.cuda._parse_visible_devices), and a test compares the two. */
static int masked(const char *mask, const int *cards, int count, int *into) {
    char entries[8192];
    snprintf(entries, sizeof entries, "%s", mask);
    if (starts_with(mask, "GPU-")) return masked_by_uuid(entries, "GPU-", cards, count, into);
    if (starts_with(mask, "MIG-")) return masked_by_uuid(entries, "MIG-", cards, count, into);
    return masked_by_index(entries, cards, count, into);
}

/* A process gets a single MIG instance, and then no other device. */
static void with_one_instance(void) {
    int instances[MAX_DEVICES];
    for (int i = 0; i < seen_count; i++) {
        int device = seen[i];
        if (node->state->devices[device].parent == NO_DEVICE) {
            if (node->state->devices[device].mig_mode != 1) continue;
            if (view_instances(node, device, instances) == 0) continue;
            device = instances[0];
        }
        seen[0] = device;
        seen_count = 1;
        return;
    }
}

/* An open /dev/nvidia-uvm shows from outside that a process has started CUDA. */
static void open_uvm(void) {
    char path[sizeof node->path + 16];
    snprintf(path, sizeof path, "%s", node->path);
    char *slash = strrchr(path, '/');
    strcpy(slash ? slash + 1 : path, "nvidia-uvm");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    (void)fd; /* stays open until the process ends */
}

static void after_fork_in_child(void) {
    pthread_mutex_init(&mutex, NULL);
    forked = forked || initialised;
    initialised = 0;
    contexts = NULL;
    current = NULL;
}

static int initialise(void) {
    if (forked) return NOT_INITIALIZED;
    if (initialised) return SUCCESS;
    node = node_of_this_process();
    if (!node) return NO_DEVICE_SEEN;
    if (node->state->magic != NODE_MAGIC) return SYSTEM_DRIVER_MISMATCH;
    int code = node_fault(node, "cuInit", NO_DEVICE);
    if (code) return code;
    if (node->state->init_code) return node->state->init_code == 18 ? SYSTEM_DRIVER_MISMATCH : NO_DEVICE_SEEN;
    int cards[MAX_DEVICES];
    int count = enumerate(cards);
    const char *mask = getenv("CUDA_VISIBLE_DEVICES");
    if (mask) seen_count = masked(mask, cards, count, seen);
    else memcpy(seen, cards, sizeof(int) * (size_t)(seen_count = count));
    with_one_instance();
    if (seen_count == 0) return NO_DEVICE_SEEN;
    static int watched;
    if (!watched++) pthread_atfork(NULL, NULL, after_fork_in_child);
    open_uvm();
    initialised = 1;
    return SUCCESS;
}

int cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    pthread_mutex_lock(&mutex);
    int code = initialise();
    pthread_mutex_unlock(&mutex);
    return code;
}

int cuDriverGetVersion(int *into) {
    struct node *current = node_of_this_process();
    *into = current ? current->state->cuda_version : 0;
    return SUCCESS;
}

int cuDeviceGetCount(int *into) {
    if (!initialised) return NOT_INITIALIZED;
    *into = seen_count;
    return SUCCESS;
}

/* Called first by each function about a device. */
static int about(const char *call, int ordinal, struct device **into) {
    if (!initialised) return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= seen_count) return INVALID_DEVICE;
    *into = &node->state->devices[seen[ordinal]];
    return node_fault(node, call, seen[ordinal]);
}

#define ABOUT(ordinal)                                 \
    struct device *device;                             \
    int refused = about(__func__, ordinal, &device);   \
    if (refused) return refused

int cuDeviceGet(int *into, int ordinal) {
    ABOUT(ordinal);
    *into = ordinal;
    return SUCCESS;
}

int cuDeviceGetName(char *into, int room, int ordinal) {
    ABOUT(ordinal);
    snprintf(into, (size_t)room, "%s", device->name);
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *into, int ordinal) {
    ABOUT(ordinal);
    *into = (size_t)(device->total - device->reserved);
    return SUCCESS;
}

static int uuid_bytes(unsigned char *into, const struct device *device) {
    int digits = 0;
    memset(into, 0, 16);
    for (const char *at = device->uuid + 4; *at && digits < 32; at++) {
        unsigned value;
        if (*at == '-' || sscanf((char[]){*at, 0}, "%x", &value) != 1) continue;
        into[digits / 2] |= (unsigned char)(digits % 2 ? value : value << 4);
        digits++;
    }
    return SUCCESS;
}

/* For a MIG instance, version 1 returns the UUID of its card, and version 2 its own. */
int cuDeviceGetUuid(unsigned char *into, int ordinal) {
    ABOUT(ordinal);
    return uuid_bytes(into, device->parent == NO_DEVICE ? device : &node->state->devices[device->parent]);
}

int cuDeviceGetUuid_v2(unsigned char *into, int ordinal) {
    ABOUT(ordinal);
    return uuid_bytes(into, device);
}

int cuDeviceGetPCIBusId(char *into, int room, int ordinal) {
    ABOUT(ordinal);
    snprintf(into, (size_t)room, "%s", (device->parent == NO_DEVICE ? device : &node->state->devices[device->parent])->bus_id + 4);
    return SUCCESS;
}

int cuDeviceComputeCapability(int *major, int *minor, int ordinal) {
    ABOUT(ordinal);
    *major = (int)device->major;
    *minor = (int)device->minor;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *into, int attribute, int ordinal) {
    ABOUT(ordinal);
    switch (attribute) {
        case 16: *into = (int)device->multiprocessors; return SUCCESS;
        case 75: *into = (int)device->major; return SUCCESS;
        case 76: *into = (int)device->minor; return SUCCESS;
        default: return INVALID_VALUE;
    }
}

/* ── contexts ── */

static int new_context(int ordinal, int primary, context_t *into) {
    int refused = node_take(node, seen[ordinal], node->state->context_bytes);
    if (refused) return refused == 1 ? OUT_OF_MEMORY : UNKNOWN;
    context_t context = calloc(1, sizeof *context);
    *context = (struct context){.next = contexts, .device = seen[ordinal], .ordinal = ordinal, .primary = primary, .references = 1};
    *into = contexts = context;
    return SUCCESS;
}

static void end_context(context_t context) {
    uint64_t bytes = node->state->context_bytes;
    for (struct allocation *allocation = context->allocations; allocation;) {
        struct allocation *next = allocation->next;
        bytes += allocation->bytes;
        free(allocation);
        allocation = next;
    }
    node_give(node, context->device, bytes);
    for (context_t *at = &contexts; *at; at = &(*at)->next)
        if (*at == context) {
            *at = context->next;
            break;
        }
    if (current == context) current = NULL;
    free(context);
}

static int known(context_t context) {
    for (context_t other = contexts; other; other = other->next)
        if (other == context) return 1;
    return 0;
}

static context_t primary_of(int ordinal) {
    for (context_t context = contexts; context; context = context->next)
        if (context->primary && context->ordinal == ordinal) return context;
    return NULL;
}

static int retain(const char *call, context_t *into, int ordinal) {
    struct device *device;
    int refused = about(call, ordinal, &device);
    if (refused) return refused;
    if (device->compute_mode == 2) return DEVICE_UNAVAILABLE;
    context_t primary = primary_of(ordinal);
    if (!primary) return new_context(ordinal, 1, into);
    primary->references++;
    *into = primary;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(context_t *into, int ordinal) {
    pthread_mutex_lock(&mutex);
    int code = retain(__func__, into, ordinal);
    pthread_mutex_unlock(&mutex);
    return code;
}

static int release(int ordinal, int all) {
    if (!initialised) return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= seen_count) return INVALID_DEVICE;
    context_t primary = primary_of(ordinal);
    if (!primary) return all ? SUCCESS : INVALID_CONTEXT;
    if (all || --primary->references == 0) end_context(primary);
    return SUCCESS;
}

#define RELEASE(name, all)                  \
    int name(int ordinal) {                 \
        pthread_mutex_lock(&mutex);         \
        int code = release(ordinal, all);   \
        pthread_mutex_unlock(&mutex);       \
        return code;                        \
    }
RELEASE(cuDevicePrimaryCtxRelease, 0)
RELEASE(cuDevicePrimaryCtxRelease_v2, 0)
RELEASE(cuDevicePrimaryCtxReset, 1)
RELEASE(cuDevicePrimaryCtxReset_v2, 1)

int cuDevicePrimaryCtxGetState(int ordinal, unsigned *flags, int *active) {
    ABOUT(ordinal);
    pthread_mutex_lock(&mutex);
    *flags = 0;
    *active = primary_of(ordinal) != NULL;
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}

int cuCtxCreate_v2(context_t *into, unsigned flags, int ordinal) {
    (void)flags;
    ABOUT(ordinal);
    pthread_mutex_lock(&mutex);
    int code = new_context(ordinal, 0, into);
    pthread_mutex_unlock(&mutex);
    if (!code) current = *into;
    return code;
}

int cuCtxDestroy_v2(context_t context) {
    pthread_mutex_lock(&mutex);
    int code = !initialised ? NOT_INITIALIZED : known(context) && !context->primary ? SUCCESS : INVALID_CONTEXT;
    if (!code) end_context(context);
    pthread_mutex_unlock(&mutex);
    return code;
}

int cuCtxSetCurrent(context_t context) {
    pthread_mutex_lock(&mutex);
    int code = !initialised ? NOT_INITIALIZED : !context || known(context) ? SUCCESS : INVALID_CONTEXT;
    if (!code) current = context;
    pthread_mutex_unlock(&mutex);
    return code;
}

int cuCtxGetCurrent(context_t *into) {
    if (!initialised) return NOT_INITIALIZED;
    *into = current;
    return SUCCESS;
}

int cuCtxGetDevice(int *into) {
    if (!initialised) return NOT_INITIALIZED;
    if (!current) return INVALID_CONTEXT;
    *into = current->ordinal;
    return SUCCESS;
}

int cuCtxSynchronize(void) { return initialised ? SUCCESS : NOT_INITIALIZED; }

/* ── memory ── */

static int allocate(const char *call, uint64_t *into, size_t bytes) {
    if (!initialised) return NOT_INITIALIZED;
    if (!current || !known(current)) return INVALID_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    int refused = node_fault(node, call, current->device);
    if (refused) return refused;
    if (node_lost(node, current->device)) return UNKNOWN;
    if (node_take(node, current->device, bytes)) return OUT_OF_MEMORY;
    struct allocation *allocation = calloc(1, sizeof *allocation);
    *allocation = (struct allocation){.next = current->allocations, .address = next_address, .bytes = bytes};
    current->allocations = allocation;
    next_address += (bytes + 511) & ~511ull;
    *into = allocation->address;
    return SUCCESS;
}

int cuMemAlloc_v2(uint64_t *into, size_t bytes) {
    pthread_mutex_lock(&mutex);
    int code = allocate(__func__, into, bytes);
    pthread_mutex_unlock(&mutex);
    return code;
}

static int deallocate(uint64_t address) {
    if (!initialised) return NOT_INITIALIZED;
    if (address == 0) return SUCCESS;
    for (context_t context = contexts; context; context = context->next)
        for (struct allocation **at = &context->allocations; *at; at = &(*at)->next) {
            if ((*at)->address != address) continue;
            struct allocation *freed = *at;
            *at = freed->next;
            node_give(node, context->device, freed->bytes);
            free(freed);
            return SUCCESS;
        }
    return INVALID_VALUE;
}

int cuMemFree_v2(uint64_t address) {
    pthread_mutex_lock(&mutex);
    int code = deallocate(address);
    pthread_mutex_unlock(&mutex);
    return code;
}

int cuMemGetInfo_v2(size_t *left, size_t *total) {
    if (!initialised) return NOT_INITIALIZED;
    if (!current) return INVALID_CONTEXT;
    struct device *device = &node->state->devices[current->device];
    int refused = node_fault(node, __func__, current->device);
    if (refused) return refused;
    *left = (size_t)node_free(node, current->device);
    *total = (size_t)(device->total - device->reserved);
    return SUCCESS;
}

/* The size of a context, for service.py. Real drivers do not have this function. */
int simulatedContextBytes(uint64_t *into) {
    if (!initialised) return NOT_INITIALIZED;
    *into = node->state->context_bytes;
    return SUCCESS;
}

/* ── errors ── */

static const struct { int code; const char *name, *text; } errors[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE_SEEN, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {SYSTEM_DRIVER_MISMATCH, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static int error_at(int code) {
    for (int i = 0; i < (int)(sizeof errors / sizeof *errors); i++)
        if (errors[i].code == code) return i;
    return -1;
}

int cuGetErrorString(int code, const char **into) {
    int at = error_at(code);
    *into = at < 0 ? NULL : errors[at].text;
    return at < 0 ? INVALID_VALUE : SUCCESS;
}

int cuGetErrorName(int code, const char **into) {
    int at = error_at(code);
    *into = at < 0 ? NULL : errors[at].name;
    return at < 0 ? INVALID_VALUE : SUCCESS;
}
