;; SPDX-License-Identifier: GPL-3.0-or-later
;; The package of this checkout, for developers:
;;   guix shell -D -f guix.scm      what is needed to work on it
;;   guix build -f guix.scm         the programs
(add-to-load-path (string-append (dirname (current-filename)) "/guix"))
(@ (narswarm packages) narswarm)
