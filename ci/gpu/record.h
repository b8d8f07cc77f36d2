// The file that kernels.cpp and graphs.cpp write for kernels.py.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

// VARIABLE.PID.txt, or NAME.PID.txt if the variable of the environment is not set, with the command line of the process.
// Returns nullptr, and says so, if it cannot be written.
static FILE * open_record(const char * variable, const char * name) {
    const char *      prefix = getenv(variable);
    const std::string path   = std::string(prefix ? prefix : name) + "." + std::to_string(getpid()) + ".txt";
    FILE * out = fopen(path.c_str(), "w");
    if (!out) {
        fprintf(stderr, "%s: %s cannot be written\n", name, path.c_str());
        return nullptr;
    }
    fputs("#", out);
    if (FILE * command = fopen("/proc/self/cmdline", "r")) {
        fputc(' ', out);
        for (int c; (c = fgetc(command)) != EOF;) {
            fputc(c == '\0' || c == '\n' ? ' ' : c, out);
        }
        fclose(command);
    }
    fputc('\n', out);
    return out;
}
