// Exceptions through several frames, caught, rethrown, and destructors on the way.
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>
#define NOINLINE __attribute__((noinline))

volatile long sink;

struct Guard {
    long v;
    explicit Guard(long v) : v(v) {}
    NOINLINE ~Guard() { sink += v; }
};

NOINLINE void thrower(int n) {
    Guard g(n);
    if (n == 0) throw std::runtime_error("deep");
    thrower(n - 1);
}
NOINLINE void rethrow(int n) {
    Guard g(n);
    try {
        thrower(n);
    } catch (const std::exception &e) {
        sink += e.what()[0];
        throw;
    }
}
NOINLINE long catcher(int n) {
    try {
        rethrow(n);
    } catch (const std::runtime_error &) {
        return n;
    }
    return 0;
}
struct Base { virtual long f(long) = 0; virtual ~Base() = default; };
struct A : Base { NOINLINE long f(long x) override { return x + 1; } };
struct B : Base { NOINLINE long f(long x) override { return A().f(x) * 2; } };

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    for (int r = 0; r < rounds; r++) {
        sink += catcher(4);
        std::vector<std::unique_ptr<Base>> v;
        v.push_back(std::make_unique<A>());
        v.push_back(std::make_unique<B>());
        for (auto &b : v) sink += b->f(r);
        std::map<std::string, long> m;
        for (int i = 0; i < 5; i++) m[std::to_string(i * 17)] += i;
        sink += m.size();
    }
    return 0;
}
