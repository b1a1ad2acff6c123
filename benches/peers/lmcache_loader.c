/* What LMCache's file client needs of the libraries that it names: nothing of PyTorch's, and one function of libstdc++ 13 and newer,
   `std::string::_M_replace_cold`, for systems whose libstdc++ is older. The libraries built from this file stand in for PyTorch's
   (see lmcache.py). */

#include <stdlib.h>
#include <string.h>

/* Replaces `old_length` characters at `place` by `length` characters at `text`, which may lie in the same string, before a tail of
   `tail` characters; the room has been checked by the caller. `string` is not needed. */
void _ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE15_M_replace_coldEPcmPKcmm(
    void *string, char *place, size_t old_length, const char *text, size_t length, size_t tail) {
    (void)string;
    char *copy = malloc(length + 1);
    if (!copy)
        abort();
    memcpy(copy, text, length);
    memmove(place + length, place + old_length, tail);
    memcpy(place, copy, length);
    free(copy);
}
