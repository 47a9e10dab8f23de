;; SPDX-License-Identifier: GPL-3.0-or-later
;;
;; A manifest of fifty packages that need nothing but the bootstrap Guile:
;;   guix shell --bootstrap -m shell.scm
;; Package N has a file of N thousand numbers.

(use-modules (guix build-system trivial) (guix packages) (guix profiles)
             (gnu packages bootstrap))

(define (item n)
  (package
    (name (string-append "e2e-shell-" (number->string n)))
    (version "1")
    (source #f)
    (build-system trivial-build-system)
    (arguments
     `(#:guile ,%bootstrap-guile
       #:builder
       (begin
         (mkdir %output)
         (mkdir (string-append %output "/share"))
         (call-with-output-file (string-append %output "/share/" ,name)
           (lambda (port)
             (let loop ((left ,(* 1000 n)) (x ,n))
               (unless (zero? left)
                 (display x port)
                 (newline port)
                 (loop (- left 1) (modulo (+ (* x 1103515245) 12345) 2147483648)))))))))
    (home-page #f)
    (synopsis "A file of numbers")
    (description "It is there to be fetched.")
    (license #f)))

(packages->manifest (map item (iota 50 1)))
