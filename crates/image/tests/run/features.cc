// What C++ adds: templates, virtual functions, type information, exceptions.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>
#include <algorithm>
#include <ugraft/livepatch.h>

namespace {
struct Shape {
	virtual ~Shape() = default;
	virtual double area() const = 0;
	virtual const char *name() const = 0;
};
struct Circle : Shape {
	double area() const override { return 3.14159; }
	const char *name() const override { return "circle"; }
};
struct Square : Shape {
	double area() const override { return 4; }
	const char *name() const override { return "square"; }
};
} // namespace

template <typename T> T sum(const std::vector<T> &of)
{
	T total{};
	for (const T &t : of)
		total += t;
	return total;
}

inline int count()
{
	static int calls = 0;
	return ++calls;
}

__attribute__((noinline)) static int deep(int x)
{
	std::string keep("destroyed on the way");
	if (x > 8)
		throw std::out_of_range("too large: " + std::to_string(x));
	if (x > 5)
		throw x;
	return (int)keep.size();
}

static int catches(int x)
{
	try {
		return deep(x);
	} catch (int thrown) {
		return thrown;
	}
}

extern "C" int run(char *out, size_t size)
{
	size_t n = 0;
#define PUT(...) (n += (size_t)snprintf(out + n, size - n, __VA_ARGS__))
	std::vector<Shape *> shapes{ new Circle, new Square };
	for (Shape *shape : shapes) {
		PUT("%s %.2f ", shape->name(), shape->area());
		if (!dynamic_cast<Circle *>(shape) && !dynamic_cast<Square *>(shape))
			PUT("? ");
		delete shape;
	}
	PUT("sum %d ", sum(std::vector<int>{ 1, 2, 3, 4 }));
	PUT("caught %d ", catches(7));
	try {
		catches(9);
	} catch (const std::exception &e) {
		PUT("passed on: %s, ", e.what());
	}
	std::vector<std::string> words{ "a", "b", "c" };
	std::swap(words[0], words[1]);
	std::string joined;
	std::for_each(words.begin(), words.end(), [&](const std::string &w) { joined += (joined.empty() ? "" : "-") + w; });
	PUT("%s, ", joined.c_str());
	int one = count(), two = count(), three = count();
	PUT("static %d %d %d", one, two, three);
	return (int)n;
}

static klp_func funcs[] = { { "run", (void *)run }, {} };
static klp_object objs[] = { { nullptr, funcs }, {} };
static klp_patch patch = { THIS_MODULE, objs };
KLP_PATCH(patch);
