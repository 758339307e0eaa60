int second(int n) { return n * 3; }
