;; SPDX-License-Identifier: GPL-3.0-or-later
;;
;; Items that refer to each other: guix repl -- chain.scm NAME COUNT BUSYBOX
;; Each has a link to the one before it and some noise of its own; prints "label store-path" lines.
;; COUNT below zero: as many, and none refers to any other.

(use-modules (guix derivations) (guix store) (ice-9 match))

(match (command-line)
  ((_ name count bb-item)
   (let* ((store (open-connection))
          (bb (string-append bb-item "/bin/busybox"))
          (count (string->number count))
          (chained? (positive? count)))
     (let loop ((n 1) (before #f))
       (when (<= n (abs count))
         (let* ((label (string-append name "-" (number->string n)))
                (script (string-append
                         "$bb mkdir $out; $bb head -c 5000 /dev/urandom > $out/noise\n"
                         "echo " label " > $out/label\n"
                         (if before (string-append "$bb ln -s " before " $out/before") "")))
                (drv (derivation store label bb (list "sh" "-euc" script)
                                 #:sources (if before (list bb-item before) (list bb-item))
                                 #:env-vars `(("bb" . ,bb) ("PATH" . "/nowhere")))))
           (build-derivations store (list drv))
           (let ((out (derivation->output-path drv)))
             (format #t "~a ~a~%" label out)
             (loop (+ n 1) (and chained? out))))))
     (close-connection store))))
