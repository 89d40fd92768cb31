/* libnvidia-ml.so.1: the functions that nvidia-ml-py, nvitop and gpustat call. Signatures and codes as in NVIDIA's nvml.h. nvidia-ml-py reports a
 * function that is missing here as NVML_ERROR_FUNCTION_NOT_FOUND, as with an older driver. */
#define _GNU_SOURCE
#include "node.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
};

typedef const char *handle_t;
static const char handles[MAX_DEVICES]; /* a handle is the address of its device's byte */
static struct node *node;
static int initialised;

static int initialise(void) {
    struct node *current = node_of_this_process();
    if (!current) return DRIVER_NOT_LOADED;
    if (current->state->magic != NODE_MAGIC) return LIB_RM_VERSION_MISMATCH;
    int code = node_fault(current, "nvmlInit", NO_DEVICE);
    if (!code) code = current->state->init_code;
    if (code) return code;
    node = current;
    __atomic_fetch_add(&initialised, 1, __ATOMIC_ACQ_REL);
    return SUCCESS;
}

int nvmlInit(void) { return initialise(); }
int nvmlInit_v2(void) { return initialise(); }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return initialise(); }

int nvmlShutdown(void) {
    if (initialised <= 0) return UNINITIALIZED;
    __atomic_fetch_sub(&initialised, 1, __ATOMIC_ACQ_REL);
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    static const char *texts[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions", "Already Initialized", "Not Found",
        "Insufficient Size", "Insufficient External Power", "Driver Not Loaded", "Timeout", "Interrupt Request Issue",
        "NVML Shared Library Not Found", "Function Not Found", "Corrupted infoROM", "GPU is lost", "GPU requires reset",
        "The operating system has blocked the request", "RM has detected an NVML/RM version mismatch", "GPU is currently in use",
        "Insufficient Memory", "No data", "vGPU ECC Not Supported", "Insufficient Resources",
    };
    return code >= 0 && code < (int)(sizeof texts / sizeof *texts) ? texts[code] : "Unknown Error";
}

static int copy(char *into, unsigned room, const char *text) {
    if (strlen(text) + 1 > room) return INSUFFICIENT_SIZE;
    strcpy(into, text);
    return SUCCESS;
}

/* Called first by each function about a device: sets its index, and returns an error code or 0. */
static int begin(const char *call, handle_t handle, int *device) {
    if (initialised <= 0) return UNINITIALIZED;
    if (handle < handles || handle >= handles + node->state->device_count) return INVALID_ARGUMENT;
    *device = (int)(handle - handles);
    if (node->state->devices[*device].parent < NO_DEVICE) return INVALID_ARGUMENT; /* a removed instance */
    return node_fault(node, call, *device);
}

#define BEGIN                                        \
    int index = 0;                                   \
    int refused = begin(__func__, handle, &index);   \
    if (refused) return refused;                     \
    struct device *device = &node->state->devices[index]; \
    (void)device

#define BEGIN_SYSTEM                                 \
    if (initialised <= 0) return UNINITIALIZED;      \
    int refused = node_fault(node, __func__, NO_DEVICE); \
    if (refused) return refused

/* A number of a card, not of its instances, that some cards do not support (-1). */
#define CARDS_NUMBER(name, type, field)                                             \
    int name(handle_t handle, type *into) {                                         \
        BEGIN;                                                                      \
        if (device->parent != NO_DEVICE || device->field < 0) return NOT_SUPPORTED; \
        *into = (type)device->field;                                                \
        return SUCCESS;                                                             \
    }

#define FIXED_NUMBER(name, value)                              \
    int name(handle_t handle, unsigned *into) {                \
        BEGIN;                                                 \
        if (device->parent != NO_DEVICE) return NOT_SUPPORTED; \
        *into = (value);                                       \
        return SUCCESS;                                        \
    }

/* ── the node ── */

int nvmlSystemGetDriverVersion(char *into, unsigned room) { BEGIN_SYSTEM; return copy(into, room, node->state->driver_version); }
int nvmlSystemGetCudaDriverVersion(int *into) { BEGIN_SYSTEM; *into = node->state->cuda_version; return SUCCESS; }
int nvmlSystemGetCudaDriverVersion_v2(int *into) { BEGIN_SYSTEM; *into = node->state->cuda_version; return SUCCESS; }

int nvmlSystemGetNVMLVersion(char *into, unsigned room) {
    BEGIN_SYSTEM;
    char text[48];
    snprintf(text, sizeof text, "%d.%s", node->state->cuda_version / 1000, node->state->driver_version);
    return copy(into, room, text);
}

int nvmlDeviceGetCount_v2(unsigned *into) {
    BEGIN_SYSTEM;
    int cards[MAX_DEVICES];
    *into = (unsigned)view_cards(node, cards);
    return SUCCESS;
}
int nvmlDeviceGetCount(unsigned *into) { return nvmlDeviceGetCount_v2(into); }

static int give_handle(const char *call, int device, handle_t *into) {
    int refused = node_fault(node, call, device);
    if (refused) return refused;
    *into = handles + device;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, handle_t *into) {
    if (initialised <= 0) return UNINITIALIZED;
    int cards[MAX_DEVICES];
    if (index >= (unsigned)view_cards(node, cards)) return INVALID_ARGUMENT;
    return give_handle(__func__, cards[index], into);
}
int nvmlDeviceGetHandleByIndex(unsigned index, handle_t *into) { return nvmlDeviceGetHandleByIndex_v2(index, into); }

int nvmlDeviceGetHandleByUUID(const char *uuid, handle_t *into) {
    if (initialised <= 0) return UNINITIALIZED;
    int cards[MAX_DEVICES], instances[MAX_DEVICES];
    int count = view_cards(node, cards);
    for (int index = 0; index < count; index++) {
        if (strcmp(node->state->devices[cards[index]].uuid, uuid) == 0) return give_handle(__func__, cards[index], into);
        int parts = view_instances(node, cards[index], instances);
        for (int part = 0; part < parts; part++)
            if (strcmp(node->state->devices[instances[part]].uuid, uuid) == 0) return give_handle(__func__, instances[part], into);
    }
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, handle_t *into) {
    if (initialised <= 0) return UNINITIALIZED;
    int cards[MAX_DEVICES];
    int count = view_cards(node, cards);
    for (int index = 0; index < count; index++) {
        const char *full = node->state->devices[cards[index]].bus_id;
        if (strcasecmp(full, bus_id) == 0 || strcasecmp(full + 4, bus_id) == 0) return give_handle(__func__, cards[index], into);
    }
    return NOT_FOUND;
}
int nvmlDeviceGetHandleByPciBusId(const char *bus_id, handle_t *into) { return nvmlDeviceGetHandleByPciBusId_v2(bus_id, into); }

/* ── identity ── */

int nvmlDeviceGetUUID(handle_t handle, char *into, unsigned room) { BEGIN; return copy(into, room, device->uuid); }
int nvmlDeviceGetName(handle_t handle, char *into, unsigned room) { BEGIN; return copy(into, room, device->name); }

int nvmlDeviceGetSerial(handle_t handle, char *into, unsigned room) {
    BEGIN;
    return device->parent == NO_DEVICE ? copy(into, room, device->serial) : NOT_SUPPORTED;
}

int nvmlDeviceGetIndex(handle_t handle, unsigned *into) {
    BEGIN;
    int cards[MAX_DEVICES];
    int count = device->parent == NO_DEVICE ? view_cards(node, cards) : view_instances(node, (int)device->parent, cards);
    for (int position = 0; position < count; position++)
        if (cards[position] == index) {
            *into = (unsigned)position;
            return SUCCESS;
        }
    return NOT_FOUND;
}

/* The N of /dev/nvidiaN: the node's number, also in a container. */
int nvmlDeviceGetMinorNumber(handle_t handle, unsigned *into) {
    BEGIN;
    if (device->parent != NO_DEVICE) return NOT_SUPPORTED;
    unsigned minor = 0;
    for (int other = 0; other < index; other++) minor += node->state->devices[other].parent == NO_DEVICE;
    *into = minor;
    return SUCCESS;
}

struct pci {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

int nvmlDeviceGetPciInfo_v3(handle_t handle, struct pci *into) {
    BEGIN;
    struct device *card = device->parent == NO_DEVICE ? device : &node->state->devices[device->parent];
    memset(into, 0, sizeof *into);
    strcpy(into->bus_id, card->bus_id);
    strncpy(into->bus_id_legacy, card->bus_id + 4, sizeof into->bus_id_legacy - 1);
    sscanf(card->bus_id, "%x:%x:%x", &into->domain, &into->bus, &into->device);
    into->device_id = 0x27b810de;
    into->subsystem_id = 0x16ca10de;
    return SUCCESS;
}
int nvmlDeviceGetPciInfo(handle_t handle, struct pci *into) { return nvmlDeviceGetPciInfo_v3(handle, into); }

int nvmlDeviceGetCudaComputeCapability(handle_t handle, int *major, int *minor) {
    BEGIN;
    *major = (int)device->major;
    *minor = (int)device->minor;
    return SUCCESS;
}

/* ── memory ── */

struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
#define MEMORY_V2 (sizeof(struct memory_v2) | 2u << 24)

/* A container with MIG instances does not see the memory of the whole card. */
static int memory_is_visible(struct device *device) {
    return device->memory_supported && !(device->mig_mode == 1 && view_is_a_container());
}

/* Version 1 counts the driver's reserved memory as used. */
int nvmlDeviceGetMemoryInfo(handle_t handle, struct memory *into) {
    BEGIN;
    if (!memory_is_visible(device)) return NOT_SUPPORTED;
    unsigned long long left = (unsigned long long)node_free(node, index);
    *into = (struct memory){.total = (unsigned long long)device->total, .free = left, .used = (unsigned long long)device->total - left};
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(handle_t handle, struct memory_v2 *into) {
    BEGIN;
    if (into->version != MEMORY_V2) return ARGUMENT_VERSION_MISMATCH;
    if (!memory_is_visible(device)) return NOT_SUPPORTED;
    unsigned long long left = (unsigned long long)node_free(node, index);
    into->total = (unsigned long long)device->total;
    into->reserved = (unsigned long long)device->reserved;
    into->free = left;
    into->used = into->total - into->reserved - left;
    return SUCCESS;
}

int nvmlDeviceGetBAR1MemoryInfo(handle_t handle, struct memory *into) {
    BEGIN;
    if (!device->memory_supported) return NOT_SUPPORTED;
    *into = (struct memory){.total = 256ull << 20, .free = 255ull << 20, .used = 1ull << 20};
    return SUCCESS;
}

/* ── processes ── */

struct process_v1 { unsigned pid; unsigned long long bytes; };
struct process_v2 { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };

static int processes(const char *call, handle_t handle, unsigned *count, void *into, int version) {
    int index = 0;
    int refused = begin(call, handle, &index);
    if (refused) return refused;
    static __thread struct holding holdings[MAX_PROCESSES];
    int total = view_hides_pids() ? 0 : node_processes(node, index, holdings, MAX_PROCESSES);
    unsigned room = *count;
    *count = (unsigned)total;
    if (total == 0) return SUCCESS;
    if (room < (unsigned)total || !into) return INSUFFICIENT_SIZE;
    for (int i = 0; i < total; i++) {
        struct device *device = &node->state->devices[holdings[i].device];
        unsigned long long bytes = view_hides_process_memory() ? ~0ull : holdings[i].bytes;
        unsigned none = 0xffffffffu;
        int whole = device->parent == NO_DEVICE;
        if (version == 1) ((struct process_v1 *)into)[i] = (struct process_v1){(unsigned)holdings[i].pid, bytes};
        else
            ((struct process_v2 *)into)[i] = (struct process_v2){(unsigned)holdings[i].pid, bytes, whole ? none : (unsigned)device->gpu_instance,
                                                                 whole ? none : (unsigned)device->compute_instance};
    }
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses(handle_t handle, unsigned *count, void *into) { return processes(__func__, handle, count, into, 1); }
int nvmlDeviceGetComputeRunningProcesses_v2(handle_t handle, unsigned *count, void *into) { return processes(__func__, handle, count, into, 2); }
int nvmlDeviceGetComputeRunningProcesses_v3(handle_t handle, unsigned *count, void *into) { return processes(__func__, handle, count, into, 3); }

#define NO_PROCESSES(name)                                       \
    int name(handle_t handle, unsigned *count, void *into) {     \
        BEGIN;                                                   \
        (void)into;                                              \
        *count = 0;                                              \
        return SUCCESS;                                          \
    }
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses)
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2)
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3)

int nvmlDeviceGetProcessUtilization(handle_t handle, void *into, unsigned *count, unsigned long long since) {
    BEGIN;
    (void)into, (void)since;
    *count = 0;
    return NOT_FOUND; /* no samples since then */
}

int nvmlSystemGetProcessName(unsigned pid, char *into, unsigned room) {
    BEGIN_SYSTEM;
    char path[64], name[256] = "";
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    if (!file) return NOT_FOUND;
    size_t got = fread(name, 1, sizeof name - 1, file);
    fclose(file);
    return got ? copy(into, room, name) : NOT_FOUND;
}

/* ── condition ── */

struct utilisation { unsigned gpu, memory; };

int nvmlDeviceGetUtilizationRates(handle_t handle, struct utilisation *into) {
    BEGIN;
    if (device->parent != NO_DEVICE || device->mig_mode == 1 || device->utilisation < 0) return NOT_SUPPORTED;
    *into = (struct utilisation){.gpu = (unsigned)device->utilisation, .memory = (unsigned)device->utilisation / 2};
    return SUCCESS;
}

int nvmlDeviceGetTemperature(handle_t handle, int sensor, unsigned *into) {
    BEGIN;
    (void)sensor;
    if (device->parent != NO_DEVICE || device->temperature < 0) return NOT_SUPPORTED;
    *into = (unsigned)device->temperature;
    return SUCCESS;
}

struct temperature_v1 { unsigned version, sensor; int temperature; };

int nvmlDeviceGetTemperatureV(handle_t handle, struct temperature_v1 *into) {
    BEGIN;
    if (device->parent != NO_DEVICE || device->temperature < 0) return NOT_SUPPORTED;
    into->temperature = (int)device->temperature;
    return SUCCESS;
}

int nvmlDeviceGetTemperatureThreshold(handle_t handle, int which, unsigned *into) {
    BEGIN;
    if (device->parent != NO_DEVICE) return NOT_SUPPORTED;
    *into = which == 0 ? 95 : 90; /* shutdown, slowdown */
    return SUCCESS;
}

CARDS_NUMBER(nvmlDeviceGetPowerUsage, unsigned, power)
CARDS_NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, power_limit)
CARDS_NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned, power_limit)
FIXED_NUMBER(nvmlDeviceGetPowerManagementMode, 1)
FIXED_NUMBER(nvmlDeviceGetPerformanceState, 0)
FIXED_NUMBER(nvmlDeviceGetPersistenceMode, 1)
FIXED_NUMBER(nvmlDeviceGetDisplayMode, 0)
FIXED_NUMBER(nvmlDeviceGetDisplayActive, 0)
CARDS_NUMBER(nvmlDeviceGetComputeMode, unsigned, compute_mode)

int nvmlDeviceGetFanSpeed(handle_t handle, unsigned *into) { BEGIN; (void)into; return NOT_SUPPORTED; /* cooled by the chassis */ }

/* Supported on Windows only. */
int nvmlDeviceGetDriverModel(handle_t handle, unsigned *current, unsigned *pending) { BEGIN; (void)current, (void)pending; return NOT_SUPPORTED; }
int nvmlDeviceGetDriverModel_v2(handle_t handle, unsigned *current, unsigned *pending) { BEGIN; (void)current, (void)pending; return NOT_SUPPORTED; }

static int clock_of(struct device *device, unsigned *into, unsigned mhz) {
    if (device->parent != NO_DEVICE) return NOT_SUPPORTED;
    *into = mhz;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(handle_t handle, int domain, unsigned *into) { BEGIN; return clock_of(device, into, domain == 2 ? 6251 : 1500); }
int nvmlDeviceGetMaxClockInfo(handle_t handle, int domain, unsigned *into) { BEGIN; return clock_of(device, into, domain == 2 ? 6251 : 2040); }

static int idle(struct device *device, unsigned *into, unsigned *period) {
    if (device->parent != NO_DEVICE || device->mig_mode == 1) return NOT_SUPPORTED;
    *into = 0;
    *period = 167000;
    return SUCCESS;
}

int nvmlDeviceGetEncoderUtilization(handle_t handle, unsigned *into, unsigned *period) { BEGIN; return idle(device, into, period); }
int nvmlDeviceGetDecoderUtilization(handle_t handle, unsigned *into, unsigned *period) { BEGIN; return idle(device, into, period); }

int nvmlDeviceGetPcieThroughput(handle_t handle, int counter, unsigned *into) { BEGIN; return clock_of(device, into, counter ? 1000 : 2000); }

int nvmlDeviceGetEccMode(handle_t handle, int *current, int *pending) {
    BEGIN;
    if (device->ecc_errors < 0) return NOT_SUPPORTED;
    *current = *pending = 1;
    return SUCCESS;
}

/* kind 0: corrected (always 0 here); 1: uncorrected. */
int nvmlDeviceGetTotalEccErrors(handle_t handle, int kind, int counter, unsigned long long *into) {
    BEGIN;
    (void)counter;
    if (device->parent != NO_DEVICE || device->ecc_errors < 0) return NOT_SUPPORTED;
    *into = kind == 1 ? (unsigned long long)device->ecc_errors : 0;
    return SUCCESS;
}

int nvmlDeviceGetMemoryErrorCounter(handle_t handle, int kind, int counter, int location, unsigned long long *into) {
    BEGIN;
    (void)counter, (void)location;
    if (device->parent != NO_DEVICE || device->ecc_errors < 0) return NOT_SUPPORTED;
    *into = kind == 1 ? (unsigned long long)device->ecc_errors : 0;
    return SUCCESS;
}

/* ── MIG ── */

int nvmlDeviceGetMigMode(handle_t handle, unsigned *current, unsigned *pending) {
    BEGIN;
    if (device->parent != NO_DEVICE) return INVALID_ARGUMENT;
    if (!device->mig_capable) return NOT_SUPPORTED;
    *current = *pending = (unsigned)device->mig_mode;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(handle_t handle, unsigned *into) {
    BEGIN;
    *into = device->mig_capable ? 7 : 0;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(handle_t handle, unsigned position, handle_t *into) {
    BEGIN;
    if (device->parent != NO_DEVICE) return INVALID_ARGUMENT;
    if (device->mig_mode != 1) return NOT_SUPPORTED;
    int instances[MAX_DEVICES];
    if (position >= (unsigned)view_instances(node, index, instances)) return NOT_FOUND;
    *into = handles + instances[position];
    return SUCCESS;
}

int nvmlDeviceIsMigDeviceHandle(handle_t handle, unsigned *into) { BEGIN; *into = device->parent != NO_DEVICE; return SUCCESS; }

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle_t handle, handle_t *into) {
    BEGIN;
    if (device->parent == NO_DEVICE) return INVALID_ARGUMENT;
    *into = handles + device->parent;
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceId(handle_t handle, unsigned *into) {
    BEGIN;
    if (device->parent == NO_DEVICE) return NOT_SUPPORTED;
    *into = (unsigned)device->gpu_instance;
    return SUCCESS;
}

int nvmlDeviceGetComputeInstanceId(handle_t handle, unsigned *into) {
    BEGIN;
    if (device->parent == NO_DEVICE) return NOT_SUPPORTED;
    *into = (unsigned)device->compute_instance;
    return SUCCESS;
}
