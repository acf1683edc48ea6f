// Drives the verilated model of a unit with whole arrays of beats: the bulk tier's bench.
//
// Compiled with the model into a shared library, which `sim_tests.bulk` loads. One call of
// `bulk_play` loads constants, sends beats, takes results and records them with their cycles; the
// model keeps its state between calls. Beats are packed as `sim_tests.beats` does: the bytes of
// tdata, then from the lowest bit up tkeep and tlast.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "Vunit.h"
#include "verilated.h"
#if VM_COVERAGE
#include "verilated_cov.h"
#endif

namespace {

constexpr size_t flag_bytes(size_t bytes) { return (bytes + 1 + 7) / 8; }
constexpr size_t IN_PACKED = IN_BYTES + flag_bytes(IN_BYTES);
constexpr size_t OUT_PACKED = OUT_BYTES + flag_bytes(OUT_BYTES);
constexpr int STRETCH = 16;     // cycles for which a side keeps its pace in a run with stalls
constexpr int DRAIN = 64;       // cycles after the last result in which no further one may come

// SplitMix64 (Steele, Lea, Flood, 2014): small, fast, and the same everywhere.
struct Dice {
    uint64_t state;
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
};

// The least of so many bytes that hold `bits` bits of a port, and the port, which holds no bits above its width.
template <typename Port>
void put(Port& port, const uint8_t* bytes, size_t bits) {
    const size_t size = (bits + 7) / 8;
    std::memcpy(&port, bytes, size);
    if (bits % 8) reinterpret_cast<uint8_t*>(&port)[size - 1] &= static_cast<uint8_t>((1u << bits % 8) - 1);
}

template <typename Port>
void get(uint8_t* bytes, const Port& port, size_t bits) {
    std::memcpy(bytes, &port, (bits + 7) / 8);
}

}  // namespace

// Libraries of several units live in one process: nothing else of theirs may be seen.
#define EXPORT __attribute__((visibility("default")))

extern "C" {

// One call of bulk_play; the fields after `unstable_capacity` are results.
struct Plan {
    const uint8_t* words;
    const uint8_t* beats;
    int64_t* taken_at;
    int64_t* given_at;
    uint8_t* given;
    int64_t* unstable;
    int64_t word_count, beat_count, expected;
    int64_t given_capacity, unstable_capacity;
    int64_t patience;      // cycles without any transfer after which the unit counts as stuck
    int64_t stall_seed;    // below 0: no stalls
    int64_t reset;         // cycles of reset before anything else
    int64_t breaks_off;    // not 0: stop when the last beat is taken, whatever is on its way
    int64_t taken, given_count, unstable_count, finished, cycle;
};

struct Unit {
    VerilatedContext context;
    std::unique_ptr<Vunit> model;
    Dice padding;
    int64_t cycle = 0;
    bool waiting = false;                    // a result was offered and not taken
    uint8_t offered[OUT_PACKED] = {};        // which one
};

static void put_idle(Unit& unit) {
    // Without valid the payload is noise, which nothing may depend on.
    uint8_t noise[std::max<size_t>(IN_PACKED, WRITE_BYTES) + 8];
    for (size_t at = 0; at < sizeof noise - 8; at += 8) {
        const uint64_t random = unit.padding.next();
        std::memcpy(noise + at, &random, 8);
    }
    Vunit& model = *unit.model;
    model.s_axis_tvalid = 0;
    put(model.s_axis_tdata, noise, 8 * IN_BYTES);
    put(model.s_axis_tkeep, noise + IN_BYTES, IN_BYTES);
    model.s_axis_tlast = noise[IN_PACKED - 1] >> 7;
}

EXPORT Unit* bulk_new(uint64_t seed) {
    auto unit = std::make_unique<Unit>();
    unit->context.randReset(2);
    unit->context.randSeed(static_cast<int>(seed % 0x7fffffff) + 1);
    unit->model = std::make_unique<Vunit>(&unit->context, "unit");
    unit->padding.state = seed;
    return unit.release();
}

EXPORT void bulk_delete(Unit* unit) { delete unit; }

#ifdef MUTANTS
EXPORT void bulk_mutant(Unit* unit, int64_t number) { unit->model->mutant = static_cast<uint32_t>(number); }
#endif

#if VM_COVERAGE
EXPORT void bulk_coverage(Unit* unit, const char* path) {
    unit->model->final();
    unit->context.coveragep()->write(path);
}
#endif

EXPORT void bulk_play(Unit* unit, Plan* plan) {
    Vunit& model = *unit->model;
    Dice dice{static_cast<uint64_t>(plan->stall_seed) * 0x2545f4914f6cdd1du + 1};
    const bool stalls = plan->stall_seed >= 0;
    const uint64_t paces[4] = {uint64_t{1} << 32, 3865470566u, uint64_t{1} << 31, 429496729u};  // 1, 0.9, 0.5, 0.1
    uint64_t offer_pace = paces[0], accept_pace = paces[0];
    bool patient = false;
    if (plan->reset > 0) {
        model.aresetn = 0;
        model.m_axis_tready = 0;
#ifdef LOADABLE
        model.s_axis_write_tvalid = 0;
#endif
        for (int64_t count = 0; count < plan->reset; ++count) {
            put_idle(*unit);
            model.aclk = 0;
            model.eval();
            model.aclk = 1;
            model.eval();
        }
        model.aresetn = 1;
        unit->waiting = false;
    }
    int64_t word = 0, beat = 0, given = 0, unstable = 0, idle = 0, drain = 0;
    bool holding = false, finished = false, fresh = true;
    for (int64_t step = 0;; ++step) {
        const bool draining = beat == plan->beat_count && given >= plan->expected && word == plan->word_count;
        if (plan->breaks_off && beat == plan->beat_count) break;
        if (draining && drain++ == DRAIN) {
            finished = true;
            break;
        }
        if (idle == plan->patience || given == plan->given_capacity) break;

        bool offer = true, accept = true;
        patient = patient && !draining;
        if (stalls && !draining) {
            if (step % STRETCH == 0) {
                const uint64_t random = dice.next();
                offer_pace = paces[random & 3];
                accept_pace = paces[random >> 2 & 3];
                patient = random >> 4 & 1;
            }
            const uint64_t random = dice.next();
            offer = (random & 0xffffffffu) < offer_pace;
            accept = random >> 32 < accept_pace;
        }
#ifdef LOADABLE
        const bool write_valid = word < plan->word_count;
        model.s_axis_write_tvalid = write_valid;
        if (write_valid) {
            put(model.s_axis_write_tdata, plan->words + word * WRITE_BYTES, 8 * WRITE_BYTES);
        } else if (stalls) {
            const uint64_t random[(WRITE_BYTES + 7) / 8 + 1] = {unit->padding.next()};
            put(model.s_axis_write_tdata, reinterpret_cast<const uint8_t*>(random), 8 * WRITE_BYTES);
        }
#else
        const bool write_valid = false;
#endif
        const bool in_valid = !write_valid && beat < plan->beat_count && (holding || offer);
        if (!in_valid) {
            if (stalls || fresh || model.s_axis_tvalid) put_idle(*unit);
            fresh = false;
        } else if (!holding) {
            const uint8_t* packed = plan->beats + beat * IN_PACKED;
            put(model.s_axis_tdata, packed, 8 * IN_BYTES);
            put(model.s_axis_tkeep, packed + IN_BYTES, IN_BYTES);
            model.s_axis_tlast = packed[IN_BYTES + IN_BYTES / 8] >> IN_BYTES % 8 & 1;
            model.s_axis_tvalid = 1;
        }
        model.aclk = 0;
        bool changes_with_ready = false;
        if (patient) {
            // Ready waits for valid; valid must not depend on ready.
            model.m_axis_tready = 1;
            model.eval();
            const bool valid_if_ready = model.m_axis_tvalid;
            model.m_axis_tready = 0;
            model.eval();
            const bool valid = model.m_axis_tvalid;
            changes_with_ready = valid != valid_if_ready;
            if (accept && valid) {
                model.m_axis_tready = 1;
                model.eval();
            }
        } else {
            model.m_axis_tready = accept;
            model.eval();
        }
        const bool out_ready = model.m_axis_tready, out_valid = model.m_axis_tvalid;
        const bool in_taken = in_valid && model.s_axis_tready;
        bool broken = changes_with_ready || (unit->waiting && !out_valid);
        if (out_valid) {
            uint8_t payload[OUT_PACKED] = {};
            get(payload, model.m_axis_tdata, 8 * OUT_BYTES);
            get(payload + OUT_BYTES, model.m_axis_tkeep, OUT_BYTES);
            payload[OUT_BYTES + OUT_BYTES / 8] |= model.m_axis_tlast << OUT_BYTES % 8;
            broken = broken || (unit->waiting && std::memcmp(payload, unit->offered, OUT_PACKED) != 0);
            if (out_ready) {
                std::memcpy(plan->given + given * OUT_PACKED, payload, OUT_PACKED);
                plan->given_at[given++] = unit->cycle;
            } else {
                std::memcpy(unit->offered, payload, OUT_PACKED);
            }
        }
        unit->waiting = out_valid && !out_ready;
        if (broken && unstable < plan->unstable_capacity) plan->unstable[unstable++] = unit->cycle;
#ifdef LOADABLE
        const bool written = write_valid && model.s_axis_write_tready;
#else
        const bool written = false;
#endif
        model.aclk = 1;
        model.eval();
        if (in_taken) plan->taken_at[beat++] = unit->cycle;
        word += written;
        holding = in_valid && !in_taken;
        idle = in_taken || written || (out_valid && out_ready) ? 0 : idle + 1;
        ++unit->cycle;
    }
    plan->taken = beat;
    plan->given_count = given;
    plan->unstable_count = unstable;
    plan->finished = finished;
    plan->cycle = unit->cycle;
}

}  // extern "C"
